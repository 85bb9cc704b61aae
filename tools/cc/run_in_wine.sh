#!/usr/bin/env bash
# Runs @PROGRAM@ with the given arguments in its own Windows installation.
set -euo pipefail

export WINEPREFIX=$TEST_TMPDIR/wine WINEDEBUG=-all WINEDLLOVERRIDES="mscoree,mshtml="
export HOME=$TEST_TMPDIR
export LC_ALL=C.UTF-8 # wine writes file names in the locale's character set
unset DISPLAY
unset XML_OUTPUT_FILE # the program would take this path for a relative one
mkdir -p "$WINEPREFIX"
# wine leaves its server running for the next program.
trap '"$(dirname "@WINE@")/wineserver" --kill || true' EXIT
"@WINE@" "@PROGRAM@" "$@"
