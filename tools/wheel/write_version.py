"""Writes _version.py: the package's version, and the versions that its C++ library is built for."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def minor_version(header: Path) -> str:
    """Returns the major and minor version that torch's version.h or NvInferVersion.h defines."""
    macro = r"#define (?:TORCH_VERSION|TRT)_(?:MAJOR|MINOR)(?:_RTX)? (\d+)"
    return ".".join(re.findall(macro, header.read_text()))


def write_version(output: Path, version: str, headers: list[Path]) -> None:
    """Writes the file. `headers` are torch's version.h and NvInferVersion.h."""
    built_for = tuple(map(minor_version, headers))
    output.write_text(f"__version__ = {version!r}\nBUILT_FOR = {built_for}\n")


if __name__ == "__main__":
    write_version(Path(sys.argv[1]), sys.argv[2], list(map(Path, sys.argv[3:])))
