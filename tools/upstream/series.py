"""What a series is made of, and the tree that its commits change one after the other."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field

from tools.upstream.errors import Conflict, Missing, Problem


def filled(paragraph: str, first: str = "", others: str = "") -> str:
    """Wrapped as git's messages are, the lines indented by `first` and `others`."""
    return textwrap.fill(
        paragraph,
        72,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


@dataclass(frozen=True)
class Commit:
    """`subject` is type(scope): subject; `files` has the whole new text by path."""

    subject: str
    body: str
    files: dict[str, str]


@dataclass
class Series:
    """Commits on top of the checkout; `left_out` has a sentence for each change that it lacks."""

    name: str
    subject: str
    body: str
    how_tested: str
    commits: list[Commit] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


class Tree:
    """The checkout's files as the commits so far leave them."""

    def __init__(
        self, read: Callable[[str], str | None], names: Callable[[str], list[str]]
    ) -> None:
        """`read` answers a file's text, or None without one; `names` the paths in a folder."""
        self._read = read
        self._names = names
        self._written: dict[str, str] = {}
        self._uncommitted: dict[str, str] = {}

    def names(self, folder: str) -> list[str]:
        return self._names(folder)

    def read(self, path: str) -> str | None:
        return self._written[path] if path in self._written else self._read(path)

    def write(self, path: str, text: str) -> None:
        if text != self.read(path):
            self._written[path] = self._uncommitted[path] = text

    def add(self, path: str, text: str) -> None:
        """A file of ours, whole. A Conflict if the checkout has another one there."""
        found = self.read(path)
        if found not in (None, text):
            raise Conflict(
                f"{path} exists in the checkout with other contents than here"
            )
        self.write(path, text)

    def build_file(self, folder: str) -> str:
        """The path of the folder's BUILD file."""
        other = f"{folder}/BUILD.bazel"
        return other if self.read(other) is not None else f"{folder}/BUILD"

    def change(
        self,
        path: str,
        what: str,
        change: Callable[[str], str],
        left_out: list[str],
    ) -> None:
        """Changes a file of upstream's; where that can't be done, `left_out` gets a sentence."""
        source = self.read(path)
        if source is None:
            left_out.append(f"{path}: there is no such file, so {what} is left out")
            return
        try:
            self.write(path, change(source))
        except Missing as missing:
            left_out.append(f"{path}: {missing}, so {what} is left out")
        except Problem as problem:
            raise type(problem)(f"{path}: {problem}") from problem

    def commit(
        self,
        series: Series,
        subject: str,
        *,
        what: list[str],
        why: str,
        how_tested: str,
    ) -> None:
        """What was written since the last commit; nothing if that is nothing."""
        if self._uncommitted:
            first, *others = what
            paragraphs = [
                f"What: {first}",
                *others,
                f"Why: {why}",
                f"How tested: {how_tested}",
            ]
            body = "\n\n".join(map(filled, paragraphs))
            series.commits.append(Commit(subject, body, self._uncommitted))
            self._uncommitted = {}
