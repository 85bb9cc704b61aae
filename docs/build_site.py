"""Builds the documentation site.

    ./bazelw run //docs:site -- DIR

Warnings are errors. Neither the build nor the site needs a network.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from sphinx.cmd.build import build_main

FOLDERS = ["docs", "core", "examples/cpp"]
FILES = ["CHANGELOG.md", "CONTRIBUTING.md"]


def copy_sources(copy: Path) -> None:
    """Copies what the site is made of, because MyST follows the links that Bazel makes to it."""
    root = Path(__file__).parents[1]
    for name in FOLDERS:
        shutil.copytree(root / name, copy / name)
    for name in FILES:
        shutil.copy(root / name, copy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", metavar="DIR", type=Path)
    arguments = parser.parse_args()
    # `bazel run` starts programs elsewhere than where it was started.
    started_in = os.environ.get("BUILD_WORKING_DIRECTORY", "")
    out_dir = Path(started_in, arguments.dir).resolve()
    options = ["--quiet", "--fail-on-warning", "--builder=html"]
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        copy_sources(copy)
        options.append(f"--doctree-dir={copy / 'doctrees'}")
        status = build_main([*options, str(copy / "docs"), str(out_dir)])
    if status:
        sys.exit(status)
    print(f"The site is {out_dir / 'index.html'}")


if __name__ == "__main__":
    main()
