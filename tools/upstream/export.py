#!/usr/bin/env python3
"""Writes what this repository has for pytorch/TensorRT as series of patches for `git am`.

    tools/upstream/export.py --onto CHECKOUT --out DIR [--strict]

The patches are for the newest commit of CHECKOUT, a git checkout of pytorch/TensorRT, which is only
read. DIR gets a folder for each series, with the cover letter 0000-cover-letter.patch beside the
patches. What is there already is not sent again. Needs git, and no network.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]
if str(ROOT) not in sys.path:  # as a script
    sys.path.insert(0, str(ROOT))

from tools.upstream import autosave_series, file_lock_series  # noqa: E402
from tools.upstream.checkout import Checkout, Clone  # noqa: E402
from tools.upstream.errors import Problem  # noqa: E402
from tools.upstream.letter import TEMPLATES, checklist_of  # noqa: E402
from tools.upstream.series import Series, Tree  # noqa: E402


def ours(path: str) -> str:
    """A file of this repository."""
    return (ROOT / path).read_bytes().decode()


def all_series(checkout: Checkout) -> list[Series]:
    """Each stands on the checkout itself: they can be sent in either order."""
    return [
        module.build(ours, Tree(checkout.read, checkout.names))
        for module in (file_lock_series, autosave_series)
    ]


def check_out(out: Path, checkout: Checkout) -> None:
    resolved = out.resolve()
    if resolved == checkout.path or checkout.path in resolved.parents:
        raise Problem(
            f"--out: {out} is in the checkout, where nothing is to be written"
        )
    if out.is_symlink() or out.exists():
        if not out.is_dir():
            raise Problem(f"--out: {out} is not a folder")
        if any(out.iterdir()):
            raise Problem(f"--out: {out} is not empty")


def export(onto: Path, out: Path, strict: bool) -> str:
    """The report for the user. Raises a Problem, with nothing written, where that can't be done."""
    checkout = Checkout(onto)
    check_out(out, checkout)
    report = []
    if checkout.is_dirty():
        report.append(
            f"{onto} has changes that are not committed: the patches are for its HEAD"
        )
    series = all_series(checkout)
    to_send = [one for one in series if one.commits]
    left_out = [note for one in to_send for note in one.left_out]
    if strict and left_out:
        raise Problem(
            "--strict: the checkout lacks what is to be changed:\n  "
            + "\n  ".join(left_out)
        )
    template = next(
        (text for text in map(checkout.read, TEMPLATES) if text is not None), None
    )
    with tempfile.TemporaryDirectory() as temporary:
        patches = Path(temporary, "patches")
        patches.mkdir()
        for one in to_send:
            clone = Clone(checkout, Path(tempfile.mkdtemp(dir=temporary)))
            clone.format_patches(one, checklist_of(template), patches / one.name)
        if to_send:
            shutil.copytree(patches, out, dirs_exist_ok=True)
    for one in series:
        if not one.commits:
            report.append(f"{one.name}: nothing to send")
            continue
        report.append(f"{one.name}:")
        report += [f"  {commit.subject}" for commit in one.commits]
        report += [f"  left out: {note}" for note in one.left_out]
        report.append(f"  git am {out / one.name}/000[1-9]-*.patch")
    return "\n".join(report)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--onto", required=True, type=Path, metavar="CHECKOUT")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="fail where CHECKOUT lacks what a patch changes, in place of leaving that out",
    )
    arguments = parser.parse_args()
    here = Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."))  # set by `bazel run`
    try:
        print(export(here / arguments.onto, here / arguments.out, arguments.strict))
    except Problem as problem:
        sys.exit(f"export: {problem}")


if __name__ == "__main__":
    main()
