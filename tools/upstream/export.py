#!/usr/bin/env python3
"""Writes what this repository has for pytorch/TensorRT as series of patches for `git am`.

    tools/upstream/export.py --onto CHECKOUT --out DIR

The patches apply to the newest commit of CHECKOUT, a git checkout of pytorch/TensorRT, which is
only read. DIR gets one folder per series with the patches and cover-letter.md, the text of the pull
request. The text also says what is not sent and why. Needs git, and no network.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]
if str(ROOT) not in sys.path:  # as a script
    sys.path.insert(0, str(ROOT))

from tools.upstream import autosave, file_lock  # noqa: E402
from tools.upstream.letter import TEMPLATE, cover_letter  # noqa: E402
from tools.upstream.tree import Missing, Series, Tree  # noqa: E402


class Problem(Exception):
    """Nothing can be exported. The text tells the user why."""


class Checkout:
    """The user's checkout, which is only read. New commits go to a separate object folder."""

    def __init__(self, path: Path, scratch: Path) -> None:
        if not path.is_dir():
            raise Problem(f"--onto: there is no folder {path}")
        self._path = path
        # Without the variables that a git hook sets.
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("GIT_")
            or name.startswith(("GIT_AUTHOR", "GIT_COMMITTER", "GIT_CONFIG"))
        }
        try:
            self.head = self._git("rev-parse", "--verify", "HEAD^{commit}").strip()
        except Problem as problem:
            raise Problem(
                f"--onto: {path} is not a git checkout with a commit: {problem}"
            ) from problem
        objects = self._git(
            "rev-parse", "--path-format=absolute", "--git-path", "objects"
        )
        (scratch / "objects").mkdir()
        self._environment |= {
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects.strip(),
            "GIT_INDEX_FILE": str(scratch / "index"),
            "GIT_OBJECT_DIRECTORY": str(scratch / "objects"),
        }
        listed = self._git("ls-tree", "-r", "-z", self.head).split("\0")
        self._modes = {
            line.split("\t")[1]: line.split(" ")[0] for line in listed if line
        }

    def _git(self, *arguments: str, input: str | None = None) -> str:
        command = ["git", "-C", str(self._path), *arguments]
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                input=None if input is None else input.encode(),
                capture_output=True,
            )
        except FileNotFoundError as error:
            raise Problem("there is no `git` on the PATH") from error
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()
            raise Problem(f"`{' '.join(command)}` failed: {words}")
        return done.stdout.decode()

    def read(self, path: str) -> str | None:
        """Returns the text of a file of the newest commit, or None if it has none."""
        if path not in self._modes:
            return None
        return self._git("cat-file", "blob", f"{self.head}:{path}")

    def format_patches(self, series: Series, out: Path) -> None:
        tip = self.head
        self._git("read-tree", tip)
        for commit in series.commits:
            for path, text in commit.files.items():
                blob = self._git("hash-object", "-w", "--stdin", input=text).strip()
                entry = f"{self._modes.get(path, '100644')},{blob},{path}"
                self._git("update-index", "--add", "--cacheinfo", entry)
            paragraphs = commit.body.split("\n\n")
            body = "\n\n".join(
                textwrap.fill(text, 72, break_on_hyphens=False) for text in paragraphs
            )
            tree = self._git("write-tree").strip()
            tip = self._git(
                *("-c", "user.useConfigOnly=true"),
                *("commit-tree", "-p", tip, "-F", "-", tree),
                input=f"{commit.subject}\n\n{body}\n",
            ).strip()
        # Overrides the user's settings, which may be for patches that people read.
        plain = [
            "--no-attach",
            "--no-cover-letter",
            "--src-prefix=a/",
            "--dst-prefix=b/",
        ]
        revisions = f"{self.head}..{tip}"
        self._git("format-patch", "--quiet", *plain, f"-o{out}", revisions)


def export(onto: Path, out: Path) -> str:
    """Returns the report for the user. If it fails, raises Problem and writes nothing."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Problem(f"--out: {out} is not an empty folder")
    if onto.resolve() in out.resolve().parents:
        raise Problem(f"--out: {out} is in the checkout, where nothing is written")
    with tempfile.TemporaryDirectory() as scratch:
        checkout = Checkout(onto, Path(scratch))
        template = checkout.read(TEMPLATE)
        if template is None:
            raise Problem(f"--onto: {onto} is not pytorch/TensorRT: no {TEMPLATE}")
        all_series = [
            module.build(
                lambda path: (ROOT / path).read_text(encoding="utf-8"),
                Tree(checkout.read),
            )
            for module in (file_lock, autosave)
        ]
        try:
            letters = [cover_letter(series, template) for series in all_series]
        except Missing as missing:
            raise Problem(f"--onto: {missing}") from missing
        report = []
        for series, letter in zip(all_series, letters, strict=True):
            folder = Path(scratch, "out", series.name)
            folder.mkdir(parents=True)
            (folder / "cover-letter.md").write_text(letter, encoding="utf-8")
            checkout.format_patches(series, folder)
            report.append(f"{series.name}:")
            if series.commits:
                report.append(f"  git am {out / series.name}/*.patch")
            report += [f"  sent: {commit.subject}" for commit in series.commits]
            report += [f"  not sent: {note}" for note in series.not_sent]
        shutil.copytree(Path(scratch, "out"), out, dirs_exist_ok=True)
    return "\n".join(report)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--onto", required=True, type=Path, metavar="CHECKOUT")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    arguments = parser.parse_args()
    here = Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."))  # set by `bazel run`
    try:
        print(export(here / arguments.onto, here / arguments.out))
    except Problem as problem:
        sys.exit(f"export: {problem}")


if __name__ == "__main__":
    main()
