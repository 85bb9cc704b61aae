"""Builds a wheel from files of several folders: stages them as one project for hatchling."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def stage(files: list[str], project: Path) -> None:
    """Copies each `DESTINATION=SOURCE` of `files` to its destination under `project`."""
    for entry in files:
        destination, _, source = entry.partition("=")
        target = project / destination
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def build(files: list[str], tag: str, output: Path) -> None:
    """Builds the wheel with `tag` and puts it at `output`.

    Raises:
        subprocess.CalledProcessError: hatchling failed; its output says why.
        SystemExit: hatchling gave the wheel another name than `output` has.
    """
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder, "project")
        stage(files, project)
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
            cwd=project,
            env={**os.environ, "WHEEL_TAG": tag},
            check=True,
            stdout=subprocess.PIPE,
        )
        (wheel,) = Path(folder).glob("*.whl")
        if wheel.name != output.name:
            sys.exit(f"hatchling built {wheel.name}, expected {output.name}")
        shutil.copyfile(wheel, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="path of the wheel")
    parser.add_argument(
        "--tag", required=True, help="such as py3-none-manylinux_2_36_x86_64"
    )
    parser.add_argument("files", nargs="+", metavar="DESTINATION=SOURCE")
    arguments = parser.parse_args()
    build(arguments.files, arguments.tag, arguments.output)


if __name__ == "__main__":
    main()
