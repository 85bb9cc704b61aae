"""The user's checkout, which is only read, and a clone of it for the commits."""

from __future__ import annotations

import os
import subprocess
from functools import cached_property
from pathlib import Path

from tools.upstream.errors import Problem
from tools.upstream.letter import cover_letter
from tools.upstream.series import Series


def _run(
    command: list[str], environment: dict[str, str], input: bytes | None = None
) -> bytes:
    try:
        done = subprocess.run(
            command, env=environment, input=input, capture_output=True
        )
    except FileNotFoundError as error:
        raise Problem("there is no `git` on the PATH") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()
        raise Problem(f"`{' '.join(command)}` failed: {words}")
    return done.stdout


class Checkout:
    """What the user's git says of it, in the user's own configuration. Files are those of HEAD."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        # No refresh of the index, and none of the variables that a git hook sets.
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
        }
        self._environment["GIT_OPTIONAL_LOCKS"] = "0"
        if not self.path.is_dir():
            raise Problem(f"--onto: there is no folder {path}")
        try:
            top = self.git("rev-parse", "--show-toplevel").strip()
        except Problem as problem:
            raise Problem(
                f"--onto: {path} is not a git checkout: {problem}"
            ) from problem
        if Path(top).resolve() != self.path:
            raise Problem(
                f"--onto: {path} is not the top of its git checkout, {top} is"
            )
        try:
            self.head = self.git("rev-parse", "--verify", "HEAD^{commit}").strip()
        except Problem as problem:
            raise Problem(f"--onto: {path} has no commit yet") from problem

    def git(self, *arguments: str) -> str:
        return _run(
            ["git", "-C", str(self.path), *arguments], self._environment
        ).decode()

    @cached_property
    def _names(self) -> list[str]:
        listed = self.git("ls-tree", "-r", "-z", "--name-only", self.head)
        return [name for name in listed.split("\0") if name]

    def read(self, path: str) -> str | None:
        """The file as HEAD has it, or None."""
        if path not in self._names:
            return None
        data = _run(
            ["git", "-C", str(self.path), "cat-file", "blob", f"{self.head}:{path}"],
            self._environment,
        )
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise Problem(f"{path} in the checkout is not UTF-8") from error

    def names(self, folder: str) -> list[str]:
        """The paths of the files below a folder."""
        return [name for name in self._names if name.startswith(f"{folder}/")]

    def is_dirty(self) -> bool:
        return bool(self.git("status", "--porcelain", "--untracked-files=no").strip())

    def date(self) -> str:
        """Of the newest commit, so that the same checkout gives the same patches."""
        return self.git("show", "-s", "--format=%cI", self.head).strip()

    def author(self) -> tuple[str, str]:
        """Name and address by the user's configuration or GIT_AUTHOR_*."""
        try:
            identity = self.git(
                "-c", "user.useConfigOnly=true", "var", "GIT_AUTHOR_IDENT"
            )
        except Problem as problem:
            raise Problem(
                "git does not know who you are: set user.name and user.email by `git config`"
            ) from problem
        name, rest = identity.split(" <", 1)
        return name, rest.split(">", 1)[0]


class Clone:
    """A bare clone in `folder`, with no file checked out: commits are made of git's objects."""

    def __init__(self, checkout: Checkout, folder: Path) -> None:
        self._checkout = checkout
        self._folder = folder / "clone.git"
        name, address = checkout.author()
        self._environment = {
            **{
                key: value
                for key, value in os.environ.items()
                if not key.startswith("GIT_")
            },
            # The user's hooks, signatures and formats are for the user's commits.
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_INDEX_FILE": str(folder / "index"),
        }
        for role in ("AUTHOR", "COMMITTER"):
            self._environment[f"GIT_{role}_NAME"] = name
            self._environment[f"GIT_{role}_EMAIL"] = address
            self._environment[f"GIT_{role}_DATE"] = checkout.date()
        self._git_in(["init", "--quiet", "--bare", "--template=", str(self._folder)])
        objects = Path(
            checkout.git(
                "rev-parse", "--path-format=absolute", "--git-path", "objects"
            ).strip()
        )
        (self._folder / "objects" / "info").mkdir(exist_ok=True)
        (self._folder / "objects" / "info" / "alternates").write_text(f"{objects}\n")

    def _git_in(self, arguments: list[str], input: bytes | None = None) -> str:
        return _run(["git", *arguments], self._environment, input).decode().strip()

    def _git(self, *arguments: str, input: bytes | None = None) -> str:
        return self._git_in(["--git-dir", str(self._folder), *arguments], input)

    def _commit(self, parent: str, message: str, files: dict[str, str]) -> str:
        entries = []
        for path, text in sorted(files.items()):
            blob = self._git("hash-object", "-w", "--stdin", input=text.encode())
            known = self._git("ls-files", "--stage", "--", path)
            mode = known.split(" ", 1)[0] or "100644"
            entries.append(f"{mode} {blob}\t{path}\n")
        self._git(
            "update-index", "--add", "--index-info", input="".join(entries).encode()
        )
        tree = self._git("write-tree")
        return self._git(
            "commit-tree", tree, "-p", parent, "-F", "-", input=message.encode()
        )

    def format_patches(
        self, series: Series, checklist: list[str], out: Path
    ) -> list[str]:
        """Writes the patches and the cover letter into `out`; their names."""
        base = tip = self._checkout.head
        self._git("read-tree", base)
        for commit in series.commits:
            tip = self._commit(
                tip, f"{commit.subject}\n\n{commit.body}\n", commit.files
            )
        branch = series.name
        self._git("update-ref", f"refs/heads/{branch}", tip)
        self._git(
            "config", f"branch.{branch}.description", cover_letter(series, checklist)
        )
        self._git(
            "format-patch",
            "--quiet",
            "--cover-letter",
            "--cover-from-description=subject",
            "--no-signature",
            f"--output-directory={out}",
            f"{base}..{branch}",
        )
        return sorted(path.name for path in out.iterdir())
