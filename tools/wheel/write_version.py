"""Writes the package's _version.py: its version, and what its C++ library is built for."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def minor_version(header: Path) -> str:
    """The major and minor version that torch's version.h or NvInferVersion.h defines."""
    macro = r"#define (?:TORCH_VERSION|TRT)_(?:MAJOR|MINOR)(?:_RTX)? (\d+)"
    return ".".join(re.findall(macro, header.read_text()))


def main() -> None:
    output, version, *headers = sys.argv[1:]
    built_for = tuple(minor_version(Path(header)) for header in headers)
    Path(output).write_text(f'__version__ = "{version}"\nBUILT_FOR = {built_for}\n')


if __name__ == "__main__":
    main()
