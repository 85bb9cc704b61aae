"""Removes the caches of kinds of machine that are not used any more from a directory.

    torchtrt-cache prune DIR (--older-than AGE | --keep-newest N | --max-size SIZE) [--dry-run]

Whole kinds go, the least recently used first: with --older-than those whose last use is longer ago
than AGE, with --keep-newest all but the N that were used last, with --max-size until the others
take at most SIZE. A kind's size is that of its file and of what killed saves left beside it.

Nothing is removed that is in use: what a process has locked, or was used within the last 24 hours.
Lock files stay, and so does everything in DIR that is no kind's file. A process that has loaded a
cache keeps its kernels when the file is removed, and its next save writes them again.

Prints a line for each kind that is removed, and for each that would be but is in use. Exit status:
0; 1 if a kind that should go could not be removed, or DIR can't be examined; 2 for wrong arguments.
"""

# A path is used as written, which pathlib would change.
# ruff: noqa: PTH108, PTH118, PTH119, PTH208

from __future__ import annotations

import argparse
import os
import re
import stat
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from torchtrt_cache.cache_files import last_use_ns, temporaries_among
from torchtrt_cache.file_lock import (
    FileLockError,
    LockIsHeldError,
    LockWaits,
    create_lock_file,
    file_lock,
    is_held,
    lock_path_of,
)
from torchtrt_cache.kinds import is_cache_name
from torchtrt_cache.text import age_text, printable, size_text

_IN_USE_FOR = 24 * 3600 * 10**9  # ns after the last use

_CHANGED = "it was used, replaced or removed meanwhile"

_DURATIONS = {"h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}  # seconds
_SIZES = {
    "": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


class _InUseError(Exception):
    """The kind is kept; the text says why."""


@dataclass(frozen=True)
class _Kind:
    """A kind as it was when the directory was listed."""

    path: str
    status: os.stat_result
    lock_time: int | None  # when its lock file was touched, in ns; None: it is missing
    last_use: int  # ns
    size: int  # bytes, those of the leftovers too
    leftovers: list[str]  # temporary files and offers

    @property
    def name(self) -> str:
        return os.path.basename(self.path).removesuffix(".bin")

    @property
    def unused_for(self) -> int:
        return time.time_ns() - self.last_use


def _kinds_in(directory: str) -> list[_Kind]:
    """The least recently used first."""
    names = os.listdir(directory)
    temporaries = temporaries_among(names)
    kinds = []
    for name in filter(is_cache_name, names):
        leftovers = [os.path.join(directory, t) for t in temporaries.get(name, [])]
        kind = _look_at(os.path.join(directory, name), leftovers)
        if kind is not None:
            kinds.append(kind)
    return sorted(kinds, key=lambda kind: (kind.last_use, kind.path))


def _look_at(path: str, leftovers: list[str]) -> _Kind | None:
    """None if there is no regular file, as where a stranger put something else."""
    status = _status(path)
    if status is None:
        return None
    lock = _status(lock_path_of(path))
    left = [status.st_size for status in map(_status, leftovers) if status]
    return _Kind(
        path=path,
        status=status,
        lock_time=lock.st_mtime_ns if lock else None,
        last_use=last_use_ns(status, lock),
        size=status.st_size + sum(left),
        leftovers=leftovers,
    )


def _status(path: str) -> os.stat_result | None:
    """Of a regular file; None if there is something else or nothing."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _remove(kind: _Kind, dry_run: bool) -> None:
    """Removes a kind's files, its cache last, so that a kill leaves the kind as a whole.

    Raises:
        _InUseError: The kind is in use, or was used since it was looked at.
        FileLockError, OSError: It could not be removed.
    """
    if kind.unused_for < _IN_USE_FOR:
        raise _InUseError(f"last used {_last_use(kind)}")
    lock_path = lock_path_of(kind.path)
    with ExitStack() as lock:
        if kind.lock_time is None and not dry_run:
            if _status(lock_path) is not None:
                raise _InUseError(_CHANGED)
            create_lock_file(lock_path, kind.status)
        if kind.lock_time is not None or not dry_run:
            try:
                lock.enter_context(file_lock(lock_path, LockWaits(timeout=0)))
            except LockIsHeldError as error:
                raise _InUseError("a process has its lock") from error
        now = _look_at(kind.path, kind.leftovers)
        if now is None or not _is_unchanged(kind, now):
            raise _InUseError(_CHANGED)
        if kind.lock_time is None and not dry_run:
            # Otherwise a kind that can't be removed would look used.
            times = (kind.last_use, kind.last_use)
            os.utime(lock_path, ns=times, follow_symlinks=False)
        for leftover in kind.leftovers:
            _remove_leftover(leftover, dry_run)
        if not dry_run:
            os.unlink(kind.path)


def _is_unchanged(before: _Kind, now: _Kind) -> bool:
    """Whether nobody has used the kind; a lock file that was missing may be our own now."""
    return _generation(before.status) == _generation(now.status) and (
        before.lock_time in (None, now.lock_time)
    )


def _generation(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _remove_leftover(path: str, dry_run: bool) -> None:
    # O_NONBLOCK: a FIFO with such a name would block.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if _status(path) is None:
        return  # gone meanwhile, or not a save's
    file = os.open(path, flags)
    try:
        if is_held(file):
            raise _InUseError(f"a save is at '{printable(path)}'")
        if not dry_run:
            os.unlink(path)
    finally:
        os.close(file)


def _last_use(kind: _Kind) -> str:
    return age_text(kind.unused_for / 1e9)


def _duration(text: str) -> float:
    expected = "a number with h, d or w, such as 90d"
    return _number_with_unit(text, _DURATIONS, expected)


def _size(text: str) -> float:
    *units, last = filter(None, _SIZES)
    expected = (
        f"a number of bytes, or one with {', '.join(units)} or {last}, such as 2GiB"
    )
    return _number_with_unit(text, _SIZES, expected)


def _count(text: str) -> int:
    return int(_number_with_unit(text, {"": 1}, "how many, such as 3", "[0-9]{1,9}"))


def _number_with_unit(
    text: str,
    units: dict[str, int],
    expected: str,
    number: str = r"[0-9]+(?:\.[0-9]+)?",
) -> float:
    match = re.fullmatch(f"({number})([A-Za-z]*)", text)
    if match is None or match[2] not in units:
        raise argparse.ArgumentTypeError(f"'{printable(text)}', expected {expected}")
    return float(match[1]) * units[match[2]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command `torchtrt-cache prune`."""
    parser.add_argument("directory", metavar="DIR", help="a runtime cache's directory")
    rule = parser.add_mutually_exclusive_group(required=True)
    rule.add_argument(
        "--older-than", type=_duration, metavar="AGE", help="such as 12h, 90d or 8w"
    )
    rule.add_argument("--keep-newest", type=_count, metavar="N", help="such as 3")
    rule.add_argument("--max-size", type=_size, metavar="SIZE", help="such as 2GiB")
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be removed"
    )


def _rule(options: argparse.Namespace) -> Callable[[_Kind, int, int], bool]:
    """Whether a kind is to go, by the number of kinds used later and the bytes of all those left.

    If it is not, then no kind that was used later is.
    """
    if options.keep_newest is not None:
        return lambda _, newer, left: newer >= options.keep_newest
    if options.max_size is not None:
        return lambda _, newer, left: left > options.max_size
    return lambda kind, newer, left: kind.unused_for > options.older_than * 1e9


def run(options: argparse.Namespace) -> int:
    """The command `torchtrt-cache prune`; returns its exit status."""
    try:
        kinds = _kinds_in(options.directory)
    except OSError as error:
        directory = printable(options.directory)
        print(f"Can't prune '{directory}': {_reason(error)}", file=sys.stderr)
        return 1
    is_to_go = _rule(options)
    left = sum(kind.size for kind in kinds)
    removed = freed = status = 0
    verb = "would remove" if options.dry_run else "removed"
    for index, kind in enumerate(kinds):
        if not is_to_go(kind, len(kinds) - index - 1, left):
            break
        size = size_text(kind.size)
        try:
            _remove(kind, options.dry_run)
        except _InUseError as error:
            print(f"kept {kind.name}: {size}, in use: {error}")
        except (FileLockError, OSError) as error:
            path = printable(kind.path)
            print(f"Can't remove '{path}': {_reason(error)}", file=sys.stderr)
            status = 1
        else:
            print(f"{verb} {kind.name}: {size}, last used {_last_use(kind)}")
            removed += 1
            freed += kind.size
            left -= kind.size
    print(
        f"{verb} {removed} of {len(kinds)} kinds: {size_text(freed)}; {size_text(left)} are left"
    )
    return status


def _reason(error: FileLockError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        file = f": '{printable(str(error.filename))}'" if error.filename else ""
        return f"{error.strerror}{file}"
    return printable(str(error))
