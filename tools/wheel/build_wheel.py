"""Builds a wheel from files of several folders, which it stages as one project for hatchling."""

from __future__ import annotations

import argparse
import json
import os
import re
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


def _version(tag: str) -> tuple[int, ...]:
    """Returns the glibc version of a manylinux tag, and for other tags one above all versions."""
    found = re.search(r"manylinux_(\d+)_(\d+)", tag)
    return tuple(map(int, found.groups())) if found else (sys.maxsize,)


def check_symbols(wheel: Path, tag: str) -> None:
    """Raises SystemExit if the wheel needs symbols that the platforms of `tag` may lack."""
    shown = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", "--json", wheel],
        check=True,
        stdout=subprocess.PIPE,
    )
    found = json.loads(shown.stdout)
    if _version(found["sym_tag"]) > _version(tag):
        sys.exit(
            f"{wheel.name} needs {found['sym_tag']}, because its library needs symbols of "
            f"{json.dumps(found['versioned_symbols'])}. `nm -D --with-symbol-versions` lists the "
            "symbols. Define those of newer versions in py/glibc_2_28.cpp."
        )


def build(files: list[str], tag: str, output: Path) -> None:
    """Builds the wheel with `tag` and puts it at `output`.

    Raises:
        subprocess.CalledProcessError: hatchling or auditwheel failed. Its output has the reason.
        SystemExit: The wheel's name is not that of `output`, or the wheel needs newer symbols than
            the platforms of `tag` have.
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
        check_symbols(wheel, tag)
        shutil.copyfile(wheel, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="path of the wheel")
    parser.add_argument(
        "--tag", required=True, help="such as py3-none-manylinux_2_28_x86_64"
    )
    parser.add_argument("files", nargs="+", metavar="DESTINATION=SOURCE")
    arguments = parser.parse_args()
    build(arguments.files, arguments.tag, arguments.output)


if __name__ == "__main__":
    main()
