#!/usr/bin/env bash
# Checks this repository on a machine with an NVIDIA GPU, without Bazel and without a network:
#
#   tools/gpu/check.sh OUT_DIR [--pack FILE | --headers DIR] [--foreign-cache FILE]...
#
# Names what is missing. Then builds the sources against the torch that $PYTHON (python3) has, asks a GPU what
# docs/gpu-results.md lists, and runs tests. OUT_DIR gets results.md, check.log and own.cache. Exit status: 0 all is well, 1
# something failed or contradicts the design, 2 something is missing and nothing was run.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
  echo "check.sh: missing: Python 3.10 or newer: $python is not found (set PYTHON)" >&2
  exit 2
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
  echo "check.sh: missing: Python 3.10 or newer: $python is $("$python" -V 2>&1) (set PYTHON)" >&2
  exit 2
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
exec "$python" -m tools.gpu.check "$@"
