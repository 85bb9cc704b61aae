"""A series of patches, and the files of the checkout that its commits change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


class Missing(Exception):
    """The checkout lacks what an edit is anchored on, or has something else there."""


def prose(text: str) -> str:
    """Returns a paragraph as one line."""
    return " ".join(text.split())


@dataclass(frozen=True)
class Commit:
    subject: str
    body: str
    files: dict[str, str]  # the whole new text by path


@dataclass
class Series:
    """Commits on top of the checkout. `not_sent` has one text per thing that is left out."""

    name: str
    subject: str
    why: str
    tested: str
    type_of_change: (
        str  # how a line below "Type of change" in upstream's template begins
    )
    commits: list[Commit] = field(default_factory=list)
    not_sent: list[str] = field(default_factory=list)


class Tree:
    """The files of the checkout's newest commit, as the commits so far leave them."""

    def __init__(self, read: Callable[[str], str | None]) -> None:
        """`read` returns the text of a file of the checkout, or None if it has none."""
        self._read = read
        self._committed: dict[str, str] = {}
        self._changed: dict[str, str] = {}

    def find(self, path: str) -> str | None:
        for files in (self._changed, self._committed):
            if path in files:
                return files[path]
        return self._read(path)

    def add(self, path: str, text: str) -> None:
        """Adds a new file. Raises Missing if the checkout has another one at `path`."""
        found = self.find(path)
        if found is None:
            self._changed[path] = text
        elif found != text:
            raise Missing(f"{path} exists with other contents")

    def edit(self, path: str, change: Callable[[str], str]) -> None:
        """Changes a file of the checkout. If the change fails, raises Missing with the path."""
        source = self.find(path)
        if source is None:
            raise Missing(f"there is no {path}")
        try:
            text = change(source)
        except Missing as missing:
            raise Missing(f"{path}: {missing}") from missing
        if text != source:
            self._changed[path] = text

    def commit(self, series: Series, subject: str, body: str) -> None:
        """Adds what has changed since the last commit to the series, if anything has."""
        if self._changed:
            series.commits.append(Commit(subject, body, self._changed))
            self._committed |= self._changed
            self._changed = {}
