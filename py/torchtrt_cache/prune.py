"""Removes from a directory the caches of kinds of machine that are no longer used.

    torchtrt-cache prune DIR (--older-than AGE | --keep-newest N | --max-size SIZE) [--dry-run]

Removes whole kinds, the least recently used first: with --older-than those last used more than AGE
ago, with --keep-newest all but the N most recently used, with --max-size until the others take at
most SIZE. The size of a kind includes what killed saves left beside its file.

Keeps the kinds in use: those whose lock a process holds, and those used in the last 24 hours. A
load by a user who may not write the kind's lock file does not count as a use. Keeps lock files, and
everything in DIR that does not belong to a kind. A process that has loaded a removed cache keeps
its kernels, and its next save writes them again.

If a killed first save left files of a kind but no cache, removes that kind before all others.

Prints a line for each kind that is removed, and for each that is kept because it is in use. Exit
status: 0; 1 if a kind could not be removed, or DIR can't be examined; 2 for wrong arguments.
"""

# Paths are used as written. pathlib would change them.
# ruff: noqa: PTH108, PTH118, PTH119, PTH208

from __future__ import annotations

import argparse
import os
import re
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass

from torchtrt_cache.cache_files import last_use_ns, look_at, temporaries_among
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
from torchtrt_cache.records import remove_record
from torchtrt_cache.text import age_text, printable, size_text

_IN_USE_FOR = 24 * 3600 * 10**9  # ns after the last use

_CHANGED = "it was used, replaced or removed meanwhile"

_DURATIONS = {"d": 24 * 3600, "w": 7 * 24 * 3600}  # seconds
_SIZES = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class _InUseError(Exception):
    """The kind is kept. The text says why."""


@dataclass(frozen=True)
class _Kind:
    """A kind as it was when the directory was listed."""

    path: str
    status: os.stat_result | None  # of the cache; None if there are only leftovers
    has_lock_file: bool
    last_use: int  # ns
    size: int  # bytes, including the leftovers
    leftovers: list[str]  # temporary files and offers

    @property
    def name(self) -> str:
        return os.path.basename(self.path).removesuffix(".bin")

    @property
    def generation(self) -> tuple[int, ...] | None:
        s = self.status
        return s and (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns)

    @property
    def unused_for(self) -> int:
        return time.time_ns() - self.last_use


def _kinds_in(directory: str) -> list[_Kind]:
    """Returns the kinds without a cache, then the others, the least recently used first."""
    names = os.listdir(directory)
    temporaries = temporaries_among(names)
    kinds = []
    for name in set(filter(is_cache_name, [*names, *temporaries])):
        leftovers = [os.path.join(directory, t) for t in temporaries.get(name, [])]
        kind = _look_at(os.path.join(directory, name), leftovers)
        if kind is not None:
            kinds.append(kind)
    return sorted(kinds, key=lambda k: (k.status is not None, k.last_use, k.path))


def _look_at(path: str, leftovers: list[str]) -> _Kind | None:
    """Returns None if nothing is there, or something other than a regular file."""
    cache = look_at(path)
    lock = look_at(lock_path_of(path))
    left = {p: s for p in leftovers if (s := look_at(p).status)}
    if cache.error or not (cache.status or left):
        return None
    return _Kind(
        path=path,
        status=cache.status,
        has_lock_file=lock.status is not None or lock.error is not None,
        last_use=max(
            last_use_ns(status, lock.status)
            for status in ([cache.status] if cache.status else left.values())
        ),
        size=sum(s.st_size for s in (cache.status, *left.values()) if s),
        leftovers=list(left),
    )


def _remove(kind: _Kind, dry_run: bool) -> None:
    """Removes a kind's files. The cache is last, so that a killed prune leaves it whole.

    Raises:
        _InUseError: The kind is in use, or was used since it was examined.
        FileLockError, OSError: The kind could not be removed.
    """
    if kind.unused_for < _IN_USE_FOR:
        raise _InUseError(f"last used {_last_use(kind)}")
    # Before the lock is taken, because a leftover of a killed prune may be a link to the lock file.
    for leftover in kind.leftovers:
        _check_is_left(leftover)
    lock_path = lock_path_of(kind.path)
    if not kind.has_lock_file and not dry_run:
        _create_lock_file(lock_path, kind)
    is_to_lock = kind.has_lock_file or not dry_run
    waits = LockWaits(timeout=0)
    try:
        with file_lock(lock_path, waits) if is_to_lock else nullcontext():
            now = _look_at(kind.path, kind.leftovers)
            if now is None or (now.generation, now.last_use) != (
                kind.generation,
                kind.last_use,
            ):
                raise _InUseError(_CHANGED)
            if not dry_run:
                # A later file must not get this record.
                remove_record(kind.path)
                for path in now.leftovers + ([kind.path] if kind.status else []):
                    os.unlink(path)
    except LockIsHeldError as error:
        raise _InUseError("a process has its lock") from error


def _create_lock_file(path: str, kind: _Kind) -> None:
    """Creates a lock file that has the time of the kind's last use. Any later use changes it."""
    temporary = f"{kind.path}.{os.getpid()}-{secrets.token_hex(8)}.tmp"
    create_lock_file(temporary, kind.status)
    try:
        os.utime(temporary, ns=(kind.last_use, kind.last_use))
        os.link(temporary, path)
    # FileNotFoundError: a save took the temporary file for a leftover.
    except (FileExistsError, FileNotFoundError) as error:
        raise _InUseError(_CHANGED) from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _check_is_left(path: str) -> None:
    """Raises _InUseError if the writer of a temporary file or an offer is alive."""
    # O_NONBLOCK: a FIFO with such a name would block.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(path, flags)
    except FileNotFoundError:
        return
    try:
        if is_held(file):
            raise _InUseError(f"a save is using '{printable(path)}'")
    finally:
        os.close(file)


def _last_use(kind: _Kind) -> str:
    return age_text(kind.unused_for / 1e9)


def _duration(text: str) -> float:
    expected = "a number with d or w, such as 90d"
    return _number_with_unit(text, _DURATIONS, expected)


def _size(text: str) -> float:
    expected = "a number of bytes, or one with KiB, MiB, GiB or TiB, such as 2GiB"
    return _number_with_unit(text, _SIZES, expected)


def _count(text: str) -> int:
    expected = "a whole number, such as 3"
    return int(_number_with_unit(text, {"": 1}, expected, "[0-9]{1,9}"))


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
    """Adds the arguments of `torchtrt-cache prune`."""
    parser.add_argument("directory", metavar="DIR", help="a runtime cache's directory")
    rule = parser.add_mutually_exclusive_group(required=True)
    rule.add_argument(
        "--older-than", type=_duration, metavar="AGE", help="such as 90d or 8w"
    )
    rule.add_argument("--keep-newest", type=_count, metavar="N", help="such as 3")
    rule.add_argument("--max-size", type=_size, metavar="SIZE", help="such as 2GiB")
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be removed"
    )


def _rule(options: argparse.Namespace) -> Callable[[_Kind, int, int], bool]:
    """Returns a function that says whether to remove a kind.

    It takes the kind, the number of kinds after it, and the bytes of all kinds left.
    """
    if options.keep_newest is not None:
        return lambda _, newer, left: newer >= options.keep_newest
    if options.max_size is not None:
        return lambda _, newer, left: left > options.max_size
    return lambda kind, newer, left: kind.unused_for > options.older_than * 1e9


def run(options: argparse.Namespace) -> int:
    """Runs `torchtrt-cache prune` and returns its exit status."""
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
            continue
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
