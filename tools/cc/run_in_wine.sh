#!/usr/bin/env bash
# Runs @PROGRAM@, with the arguments given, in a Windows installation of its own.
set -euo pipefail

export WINEPREFIX=$TEST_TMPDIR/wine WINEDEBUG=-all WINEDLLOVERRIDES="mscoree,mshtml="
export HOME=$TEST_TMPDIR
export LC_ALL=C.UTF-8 # wine writes file names in the locale's character set
unset DISPLAY
unset XML_OUTPUT_FILE # a path that the program takes for a relative one
mkdir -p "$WINEPREFIX"
# wine leaves its server running for the next program.
trap '"$(dirname "@WINE@")/wineserver" --kill || true' EXIT
"@WINE@" "@PROGRAM@" "$@"
