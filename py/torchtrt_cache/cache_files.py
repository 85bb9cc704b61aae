"""The status of cache files and of the files beside them. Opens nothing and takes no lock."""

# Paths are used as written. pathlib would change them.

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass

_TEMPORARY = re.compile(r"(?s:(.+))\.[0-9]+-[0-9a-f]{16}\.(?:tmp|merge)")


@dataclass(frozen=True)
class SeenFile:
    """What lstat says about a path.

    Attributes:
        path: As it was given.
        status: None unless the path is a regular file.
        error: Why the path is not a regular file. None if it is one, or if nothing is there.
    """

    path: str
    status: os.stat_result | None
    error: str | None


def look_at(path: str) -> SeenFile:
    """Returns what is at the path itself. Does not follow a symbolic link.

    Raises OSError if that can't be determined.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return SeenFile(path, None, None)
    if stat.S_ISLNK(status.st_mode):
        return SeenFile(path, None, "it is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        return SeenFile(path, None, "it is not a regular file")
    return SeenFile(path, status, None)


def last_use_ns(status: os.stat_result, lock: os.stat_result | None) -> int:
    """Returns when a cache was last used, in nanoseconds.

    A load sets the time of the lock file, and a save sets the times of both files.
    """
    return max(status.st_mtime_ns, lock.st_mtime_ns if lock else 0)


def temporaries_among(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns the temporary files and offers among a directory's names, by their cache's name."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        if match := _TEMPORARY.fullmatch(name):
            found.setdefault(match[1], []).append(name)
    return found
