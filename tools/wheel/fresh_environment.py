"""Makes virtual environments with our wheel, without downloading its dependencies again."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def _link(distribution: metadata.Distribution, site_packages: Path) -> None:
    for file in distribution.files or ():
        top = file.parts[0]
        target = site_packages / top
        if top in ("..", "__pycache__") or target.exists():
            continue
        target.symlink_to(Path(str(distribution.locate_file(top))))


def _requirements(
    distribution: metadata.Distribution, extras: set[str]
) -> list[Requirement]:
    found = [Requirement(line) for line in distribution.requires or ()]
    return [
        requirement
        for requirement in found
        if requirement.marker is None
        or any(requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras})
    ]


def _link_with_dependencies(wheel: Path, extras: set[str], site_packages: Path) -> None:
    (dist_info,) = (
        entry
        for entry in zipfile.Path(wheel).iterdir()
        if entry.name.endswith(".dist-info")
    )
    pending = _requirements(metadata.PathDistribution(dist_info), extras)
    linked = set()
    while pending:
        requirement = pending.pop()
        if str(requirement) in linked:
            continue
        linked.add(str(requirement))
        try:
            distribution = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            continue  # pip reports it
        _link(distribution, site_packages)
        pending += _requirements(distribution, requirement.extras)


def make_environment(folder: Path, wheel: Path, *extras: str) -> Path:
    """Makes a virtual environment at `folder`, where pip installs `wheel` with the extras.

    The wheel's dependencies are not downloaded, because torch is 5 GB. They are symbolic links to
    the running interpreter's environment. The new environment has nothing else of it.

    Returns:
        The path of the environment's interpreter.

    Raises:
        subprocess.CalledProcessError: A dependency of the wheel is missing or has the wrong
            version. pip's output says which.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    (site_packages,) = folder.glob("lib/python*/site-packages")
    _link_with_dependencies(wheel, set(extras), site_packages)
    brackets = f"[{','.join(extras)}]" if extras else ""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "install", "--quiet", "--no-index", f"{wheel}{brackets}"],
        check=True,
        stdout=sys.stderr,
    )
    return python
