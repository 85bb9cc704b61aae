"""Tells about runtime cache files, without taking their locks or changing anything.

    python -m torch_tensorrt.runtime.cache_info [--json] PATH...

Exit status: 0; 1 if a PATH has no cache file, or one that can't be looked at; 2 for wrong
arguments. --json prints a list with an object for each PATH:

    path             PATH
    target           the file that it leads to, after symbolic links
    error            why there is no size and time; null if there are
    size             of the file, in bytes
    modified         when it was written, ISO 8601 in UTC
    age_seconds      how long ago that is
    lock             of the file:
        path         PATH.lock
        state        "missing": there is no lock file, so nobody has it; "free"; "shared" by
                     readers; "exclusive" to a writer or a user of filelock; "unknown"
        holders      a list of processes, each an object with pid, command and mode, which is
                     "shared" or "exclusive"; the command is null where the system does not tell it
        note         what can't be seen of the lock; null if nothing
    temporary_files  what saves write before they rename it to the target; null if its folder
                     can't be listed, else a list of objects:
        path, size, modified, age_seconds
        state        "writing": a save is at it; "left" by a process that died, to be removed by the
                     next save; "unknown"
        holders      the processes at it, as above
"""

from __future__ import annotations

import argparse
import json
import os
import re
import stat
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from torchtrt_cache.lock_holders import (
    LockHolder,
    LockHolders,
    find_lock_holders,
)

_LONGEST_COMMAND = 160  # characters, in the text


@dataclass
class LockInfo:
    """The lock of a cache file, as the module's text has it."""

    path: str
    state: str
    holders: list[LockHolder]
    note: str | None


@dataclass
class TemporaryFileInfo:
    """A file that a save writes, or wrote, as the module's text has it."""

    path: str
    size: int
    modified: str
    age_seconds: float
    state: str
    holders: list[LockHolder]


@dataclass
class CacheInfo:
    """What --json prints of one PATH."""

    path: str
    target: str
    error: str | None
    size: int | None
    modified: str | None
    age_seconds: float | None
    lock: LockInfo
    temporary_files: list[TemporaryFileInfo] | None


def inspect(path: str) -> CacheInfo:
    """What the module's text says about --json, for one PATH."""
    target = Path(os.path.realpath(path))
    status, error = _status_of(target)
    if status is None and error is None:
        error = "there is no such file"
    lock_path = Path(f"{path}.lock")
    lock_status, lock_error = _status_of(lock_path)
    temporaries = _temporaries_of(target)
    files = {
        _id_of(file) for file in [lock_status, *(temporaries or {}).values()] if file
    }
    holders = find_lock_holders(files)
    return CacheInfo(
        path=path,
        target=str(target),
        error=error,
        size=status.st_size if status else None,
        modified=_modified(status) if status else None,
        age_seconds=_age(status) if status else None,
        lock=_lock_info(lock_path, lock_status, lock_error, holders),
        temporary_files=(
            None
            if temporaries is None
            else [_temporary_info(*item, holders) for item in temporaries.items()]
        ),
    )


def _status_of(path: Path) -> tuple[os.stat_result | None, str | None]:
    """Of a regular file; else None, with the reason unless it is that there is none."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, error.strerror
    if stat.S_ISLNK(status.st_mode):
        return None, "it is a symbolic link"
    if not stat.S_ISREG(status.st_mode):
        return None, "it is not a regular file"
    return status, None


def _temporaries_of(target: Path) -> dict[Path, os.stat_result] | None:
    name = re.compile(re.escape(target.name) + r"\.[0-9]+-[0-9a-f]{16}\.tmp")
    try:
        paths = sorted(
            path for path in target.parent.iterdir() if name.fullmatch(path.name)
        )
    except OSError:
        return None
    statuses = {path: _status_of(path)[0] for path in paths}
    # None: renamed meanwhile by its writer.
    return {path: status for path, status in statuses.items() if status is not None}


def _id_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _modified(status: os.stat_result) -> str:
    return datetime.fromtimestamp(status.st_mtime, timezone.utc).isoformat()


def _age(status: os.stat_result) -> float:
    return time.time() - status.st_mtime


def _lock_info(
    path: Path, status: os.stat_result | None, error: str | None, found: LockHolders
) -> LockInfo:
    holders = found.of(_id_of(status)) if status else []
    note = error
    if holders:
        state = holders[0].mode
    elif status is None:
        state = "missing" if error is None else "unknown"
    else:
        state = "free" if found.blind_spot is None else "unknown"
        note = found.blind_spot
    return LockInfo(path=str(path), state=state, holders=holders, note=note)


def _temporary_info(
    path: Path, status: os.stat_result, found: LockHolders
) -> TemporaryFileInfo:
    holders = found.of(_id_of(status))
    state_if_not_held = "left" if found.blind_spot is None else "unknown"
    return TemporaryFileInfo(
        path=str(path),
        size=status.st_size,
        modified=_modified(status),
        age_seconds=_age(status),
        state="writing" if holders else state_if_not_held,
        holders=holders,
    )


def _print(info: CacheInfo) -> None:
    print(_printable(info.path))
    if info.target != str(Path(info.path).absolute()):
        print(f"  leads to  {_printable(info.target)}")
    if info.size is None or info.modified is None or info.age_seconds is None:
        print(f"  file      {info.error}")
    else:
        empty = ", which counts as no cache" if info.size == 0 else ""
        print(f"  size      {_size(info.size)}{empty}")
        print(f"  modified  {_time(info.modified)}, {_duration(info.age_seconds)}")
    print(f"  lock      {_lock_text(info.lock)}")
    for holder in info.lock.holders:
        print(f"            {_holder(holder)}")
    if info.temporary_files is None:
        print("  saves     can't be seen, as the folder can't be listed")
    for file in info.temporary_files or []:
        print(f"  {_TEMPORARY_TEXT[file.state]}  {_printable(file.path)}")
        print(f"            {_size(file.size)}, {_duration(file.age_seconds)}")
        for holder in file.holders:
            print(f"            {_holder(holder)}")


_TEMPORARY_TEXT = {
    "writing": "writing ",
    "left": "leftover",
    "unknown": "leftover, or being written",
}


def _lock_text(lock: LockInfo) -> str:
    text = {
        "missing": "free, there is no lock file",
        "free": "free",
        "shared": "held by readers",
        "exclusive": "held",
        "unknown": "no holder found",
    }[lock.state]
    return text if lock.note is None else f"{text}: {lock.note}"


def _holder(holder: LockHolder) -> str:
    command = _printable(holder.command or "(its command is not known)")
    if len(command) > _LONGEST_COMMAND:
        command = command[:_LONGEST_COMMAND] + "..."
    return f"{holder.mode}, by process {holder.pid}: {command}"


def _printable(text: str) -> str:
    """Without what a terminal would obey: others choose these names."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _size(size: int) -> str:
    text = f"{size:,} bytes"
    return text if size < 1_000_000 else f"{text} ({size / 1e6:,.1f} MB)"


def _time(modified: str) -> str:
    return (
        datetime.fromisoformat(modified).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    )


def _duration(seconds: float) -> str:
    if seconds < 0:
        return "in the future"
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"


def main(arguments: list[str] | None = None) -> int:
    """The program: prints, and returns its exit status; None stands for the process's arguments."""
    summary, _, details = (__doc__ or "").partition("\n")  # none under python -OO
    parser = argparse.ArgumentParser(
        prog="python -m torch_tensorrt.runtime.cache_info",
        description=summary,
        epilog=details.partition("PATH...\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a runtime cache file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    infos = [inspect(path) for path in options.paths]
    if options.json:
        json.dump([asdict(info) for info in infos], sys.stdout, indent=2)
        print()
    else:
        for info in infos:
            _print(info)
    return 1 if any(info.error for info in infos) else 0


if __name__ == "__main__":
    sys.exit(main())
