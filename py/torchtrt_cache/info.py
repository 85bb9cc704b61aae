"""Shows runtime cache files, without taking their locks or changing anything.

    torchtrt-cache info [--json] PATH...

A PATH is a cache file, or a directory with one file per kind of machine. The kinds of this machine
are marked, and so are the files that it would load in place of missing ones. Exit status: 0; 1 if a
PATH has no cache file, or one that can't be examined; 2 for wrong arguments. --json prints a list
with one object per PATH. For a file:

    path             PATH
    target           the file that PATH leads to, after symbolic links
    error            why size and times are null; null if they are known
    size             in bytes
    modified         when the file was written, in ISO 8601 and UTC
    age_seconds      seconds since then
    lock             an object:
        path         PATH.lock
        state        "missing": there is no lock file, so nobody holds the lock; "free"; "shared":
                     held by readers; "exclusive": held by a writer or a user of filelock; "unknown"
        holders      a list of processes, each an object with pid, command and mode; the mode is
                     "shared" or "exclusive", the command is null if the system does not show it
        note         what can't be seen of the lock; null if everything can
    temporary_files  a list of the files that saves write beside the target, each an object; null if
                     the target's folder can't be listed:
        path, size, modified, age_seconds
        state        "writing": a save is using it; "left": its writer died, and the next save
                     removes it; "unknown"
        holders      the processes that use it, as above

For a directory:

    path             PATH
    error            why it has no cache files; null if it has some
    kinds            a list of objects, the most recently used kind first; each has what the object
                     of a file has, and
        name         of the file, without .bin
        kind         what the name says: an object with gpu, compute_capability (89 is 8.9),
                     tensorrt_rtx, os_family and cuda_driver (13000 is 13.0); null for
                     runtime_cache-VERSION.bin, the default cache of earlier versions
        last_used    when a process last read or wrote the file, according to the times of the file
                     and its lock file; null if the file is missing
        is_of_this_machine  whether this machine saves to the file; it is listed even if missing
        is_loaded_here      whether this machine would load the file now
"""

# Paths are used as written. pathlib would change them.
# ruff: noqa: PTH100, PTH118, PTH208

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from torchtrt_cache import cache_files
from torchtrt_cache.cache_files import SeenFile, last_use_ns, temporaries_among
from torchtrt_cache.file_lock import lock_path_of
from torchtrt_cache.kinds import (
    RuntimeCacheKind,
    files_to_load,
    is_cache_name,
    is_directory,
    is_empty,
    kind_named,
    kinds_of_machine,
)
from torchtrt_cache.lock_holders import (
    FileId,
    LockHolder,
    LockHolders,
    find_lock_holders,
)
from torchtrt_cache.text import age_text, printable, size_text

__all__ = [
    "CacheInfo",
    "DirectoryInfo",
    "KindInfo",
    "LockInfo",
    "TemporaryFileInfo",
    "inspect",
]

_LONGEST_COMMAND = 160  # characters, in the text
_LAST_TIME = (
    253_370_764_800  # the year 9999, where datetime ends and file systems do not
)


@dataclass
class LockInfo:
    """The lock of a cache file. The module's docstring describes the fields."""

    path: str
    state: str
    holders: list[LockHolder]
    note: str | None


@dataclass
class TemporaryFileInfo:
    """A temporary file of a save. The module's docstring describes the fields."""

    path: str
    size: int
    modified: str
    age_seconds: float
    state: str
    holders: list[LockHolder]


@dataclass
class CacheInfo:
    """What --json prints for a PATH that is not a directory."""

    path: str
    target: str
    error: str | None
    size: int | None
    modified: str | None
    age_seconds: float | None
    lock: LockInfo
    temporary_files: list[TemporaryFileInfo] | None


@dataclass
class KindInfo(CacheInfo):
    """What --json prints for a file in a PATH that is a directory."""

    name: str
    kind: RuntimeCacheKind | None
    last_used: str | None
    is_of_this_machine: bool
    is_loaded_here: bool


@dataclass
class DirectoryInfo:
    """What --json prints for a PATH that is a directory."""

    path: str
    error: str | None
    kinds: list[KindInfo]


def inspect(path: str) -> CacheInfo | DirectoryInfo:
    """Returns what --json prints for one PATH. The module's docstring describes it."""
    if is_directory(path):
        return _inspect_directory(path)
    files = _Files(path, _temporaries_in)
    return files.describe(find_lock_holders(files.ids()))


def _inspect_directory(path: str) -> DirectoryInfo:
    try:
        names = {name for name in os.listdir(path) if is_cache_name(name)}
    except OSError as error:
        return DirectoryInfo(path, error.strerror, [])
    kinds_here = kinds_of_machine()
    of_this_machine = {kind.file_name() for kind in kinds_here}
    loaded_here = {
        next((file for file in files_to_load(path, kind) if not is_empty(file)), None)
        for kind in kinds_here
    }
    temporaries_in = functools.cache(_temporaries_in)
    files_of = {
        name: _Files(os.path.join(path, name), temporaries_in)
        for name in names | of_this_machine
    }
    ids: set[FileId] = set().union(*(files.ids() for files in files_of.values()))
    holders = find_lock_holders(ids)
    kinds = [
        KindInfo(
            **vars(files.describe(holders)),
            name=name.removesuffix(".bin"),
            kind=kind_named(name),
            last_used=files.last_used(),
            is_of_this_machine=name in of_this_machine,
            is_loaded_here=os.path.join(path, name) in loaded_here,
        )
        for name, files in sorted(files_of.items())
    ]
    kinds.sort(key=lambda kind: kind.last_used or "", reverse=True)
    has_file = any(kind.size is not None for kind in kinds)
    return DirectoryInfo(
        path, None if has_file else "there is no cache file in it", kinds
    )


def _temporaries_in(directory: str) -> dict[str, list[str]] | None:
    """Returns temporary files by their cache's name. None if the directory can't be listed."""
    try:
        names = os.listdir(directory)
    except OSError:
        return None
    return temporaries_among(names)


class _Files:
    """A cache file, its lock file and its temporary files."""

    def __init__(
        self,
        path: str,
        temporaries_in: Callable[[str], dict[str, list[str]] | None],
    ) -> None:
        self._path = path
        self._file = _look_at(os.path.realpath(path))
        self._lock = _look_at(lock_path_of(path))
        directory, name = os.path.split(self._file.path)
        temporaries = temporaries_in(directory)
        self._temporaries = None
        if temporaries is not None:
            paths = (os.path.join(directory, t) for t in temporaries.get(name, []))
            self._temporaries = [_look_at(path) for path in paths]

    def ids(self) -> set[FileId]:
        """Returns the ids of the files that somebody could hold."""
        files = (self._lock, *(self._temporaries or []))
        return {_id_of(file.status) for file in files if file.status}

    def last_used(self) -> str | None:
        if self._file.status is None:
            return None
        return _iso_time(last_use_ns(self._file.status, self._lock.status) / 1e9)

    def describe(self, holders: LockHolders) -> CacheInfo:
        status = self._file.status
        missing = None if status else "there is no such file"
        temporaries = self._temporaries
        return CacheInfo(
            path=self._path,
            target=self._file.path,
            error=self._file.error or missing,
            size=status.st_size if status else None,
            modified=_iso_time(status.st_mtime) if status else None,
            age_seconds=_age(status) if status else None,
            lock=_lock_info(self._lock, holders),
            temporary_files=(
                None
                if temporaries is None
                else [
                    _temporary_info(file.path, file.status, holders)
                    for file in temporaries
                    if file.status is not None  # otherwise its writer has renamed it
                ]
            ),
        )


def _look_at(path: str) -> SeenFile:
    try:
        return cache_files.look_at(path)
    except OSError as error:
        return SeenFile(path, None, error.strerror)


def _id_of(status: os.stat_result) -> FileId:
    return status.st_dev, status.st_ino


def _iso_time(seconds: float) -> str:
    within_range = min(max(seconds, 0), _LAST_TIME)
    return datetime.fromtimestamp(within_range, timezone.utc).isoformat()


def _age(status: os.stat_result) -> float:
    return time.time() - status.st_mtime


def _lock_info(file: SeenFile, found: LockHolders) -> LockInfo:
    holders = found.of(_id_of(file.status)) if file.status else []
    note = file.error
    if holders:
        state = holders[0].mode
    elif file.status is None:
        state = "missing" if file.error is None else "unknown"
    else:
        state = "free" if found.blind_spot is None else "unknown"
        note = found.blind_spot
    return LockInfo(path=file.path, state=state, holders=holders, note=note)


def _temporary_info(
    path: str, status: os.stat_result, found: LockHolders
) -> TemporaryFileInfo:
    holders = found.of(_id_of(status))
    state_if_not_held = "left" if found.blind_spot is None else "unknown"
    return TemporaryFileInfo(
        path=path,
        size=status.st_size,
        modified=_iso_time(status.st_mtime),
        age_seconds=_age(status),
        state="writing" if holders else state_if_not_held,
        holders=holders,
    )


def _print_file(info: CacheInfo) -> None:
    print(printable(info.path))
    if info.target != os.path.abspath(info.path):
        print(f"  leads to  {printable(info.target)}")
    if info.size is None or info.modified is None or info.age_seconds is None:
        print(f"  file      {info.error}")
    else:
        empty = ", which counts as no cache" if info.size == 0 else ""
        print(f"  size      {size_text(info.size)}{empty}")
        print(f"  modified  {_local_time(info.modified)}, {age_text(info.age_seconds)}")
    print(f"  lock      {_lock_text(info.lock)}")
    for holder in info.lock.holders:
        print(f"            {_holder_text(holder)}")
    if info.temporary_files is None:
        print("  saves     unknown: the folder can't be listed")
    for file in info.temporary_files or []:
        print(f"  {_TEMPORARY_TEXT[file.state]}  {printable(file.path)}")
        print(f"            {size_text(file.size)}, {age_text(file.age_seconds)}")
        for holder in file.holders:
            print(f"            {_holder_text(holder)}")


_TEMPORARY_TEXT = {
    "writing": "writing ",
    "left": "leftover",
    "unknown": "leftover, or being written",
}

_LOCK_TEXT = {
    "missing": "free: there is no lock file",
    "free": "free",
    "shared": "held by readers",
    "exclusive": "held",
    "unknown": "no holder found",
}


def _lock_text(lock: LockInfo) -> str:
    text = _LOCK_TEXT[lock.state]
    return text if lock.note is None else f"{text}: {lock.note}"


def _holder_text(holder: LockHolder) -> str:
    command = printable(holder.command or "(unknown command)")
    if len(command) > _LONGEST_COMMAND:
        command = command[:_LONGEST_COMMAND] + "..."
    return f"{holder.mode}, by process {holder.pid}: {command}"


def _print_directory(info: DirectoryInfo) -> None:
    print(printable(info.path))
    if info.error:
        print(f"  {info.error}")
    if not info.kinds:
        return
    header = ("", "kind", "size", "last use", "modified", "lock")
    rows = [header, *map(_row, info.kinds)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"  {'  '.join(cells)}".rstrip())
    if any(kind.is_of_this_machine for kind in info.kinds):
        print("  * is what this machine would use")
        if any(map(_is_loaded_instead, info.kinds)):
            print("  + is what it would load now, without changing it")
    else:
        print("  (the kind of this machine is unknown: it lacks CUDA or TensorRT-RTX)")


def _is_loaded_instead(kind: KindInfo) -> bool:
    return kind.is_loaded_here and not kind.is_of_this_machine


def _row(kind: KindInfo) -> tuple[str, str, str, str, str, str]:
    mark = "*" if kind.is_of_this_machine else "+" * _is_loaded_instead(kind)
    lock = _LOCK_TEXT[kind.lock.state]
    if kind.size is None or kind.modified is None or kind.last_used is None:
        return mark, kind.name, str(kind.error), "", "", lock
    unused = time.time() - datetime.fromisoformat(kind.last_used).timestamp()
    size, modified = size_text(kind.size), _local_time(kind.modified)
    return mark, kind.name, size, age_text(unused), modified, lock


def _local_time(iso_time: str) -> str:
    return (
        datetime.fromisoformat(iso_time).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `torchtrt-cache info`."""
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="a runtime cache file or directory"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Runs `torchtrt-cache info` and returns its exit status."""
    infos = [inspect(path) for path in options.paths]
    if options.json:
        print(json.dumps([asdict(info) for info in infos], indent=2))
    for info in infos if not options.json else []:
        if isinstance(info, DirectoryInfo):
            _print_directory(info)
        else:
            _print_file(info)
    return 1 if any(info.error for info in infos) else 0
