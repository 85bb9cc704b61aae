"""Finds the holders of locks on files, as Linux lists them. Takes no lock and opens no file."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_PROC = Path("/proc")
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of the kernel
_MODES = {"READ": "shared", "WRITE": "exclusive"}
# "1: FLOCK  ADVISORY  WRITE 4711 fe:00:3284993 0 EOF". A waiter has "->" before FLOCK.
_LOCK = re.compile(
    r"\d+: FLOCK +\w+ +(?P<mode>READ|WRITE) +(?P<taker>\d+) "
    r"(?P<major>[0-9a-f]+):(?P<minor>[0-9a-f]+):(?P<inode>\d+) "
)

FileId = tuple[int, int]  # device and inode, as in stat


@dataclass(frozen=True)
class LockHolder:
    """A process that has the lock. Several have it after a fork, or if it is shared."""

    pid: int
    command: str | None  # None: the process has ended, or the system does not show it
    mode: str  # "shared" or "exclusive"


@dataclass
class LockHolders:
    """The holders that could be found."""

    by_file: dict[FileId, list[LockHolder]] = field(default_factory=dict)
    blind_spot: str | None = None  # what could not be seen; None: nothing

    def of(self, file: FileId) -> list[LockHolder]:
        return self.by_file.get(file, [])


def find_lock_holders(files: set[FileId]) -> LockHolders:
    """Finds the holders of flock(2) locks on the files.

    The descriptors of a process show its locks, but only root can see the descriptors of other
    users' processes. Their locks are in the list of all locks, under the process that took them.
    """
    found = LockHolders()
    if not (_PROC / "self" / "fdinfo").is_dir():
        found.blind_spot = "this system does not show who holds a lock"
        return found
    sees_all_processes = os.geteuid() == 0
    takers: set[tuple[FileId, int]] = set()
    for process in _PROC.iterdir():
        if not process.name.isdecimal():
            continue
        try:
            for file, mode, taker in _locks_of(process):
                if file in files:
                    takers.add((file, taker))
                    _add(found, file, int(process.name), mode)
        except PermissionError:
            sees_all_processes = False
        except OSError:  # it ended meanwhile
            pass
    sees_all_locks = _is_list_by_same_devices(files)
    try:
        for file, mode, taker in _listed_locks():
            if file in files and (file, taker) not in takers:
                _add(found, file, taker, mode)
    except OSError:
        sees_all_locks = False
    if str((_PROC / "self/ns/pid").readlink()) != _INITIAL_PID_NAMESPACE:
        found.blind_spot = "processes outside this container can't be seen"
    elif not (sees_all_processes or sees_all_locks):
        found.blind_spot = "the locks of other users' processes can't be seen"
    return found


def _add(found: LockHolders, file: FileId, pid: int, mode: str) -> None:
    holder = LockHolder(pid=pid, command=_command_of(pid), mode=mode)
    holders = found.by_file.setdefault(file, [])
    if holder not in holders:  # a process may have the descriptor twice
        holders.append(holder)


def _locks_of(process: Path) -> Iterator[tuple[FileId, str, int]]:
    """Yields file, mode and taker of each lock that a descriptor of the process holds."""
    for descriptor in (process / "fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            for lock in _LOCK.finditer(descriptor.read_text()):
                # The numbers in fdinfo differ from those of stat on some file systems.
                status = (process / "fd" / descriptor.name).stat()
                yield (status.st_dev, status.st_ino), _MODES[lock["mode"]], int(
                    lock["taker"]
                )


def _listed_locks() -> Iterator[tuple[FileId, str, int]]:
    for lock in _LOCK.finditer((_PROC / "locks").read_text()):
        device = os.makedev(int(lock["major"], 16), int(lock["minor"], 16))
        yield (device, int(lock["inode"])), _MODES[lock["mode"]], int(lock["taker"])


def _is_list_by_same_devices(files: set[FileId]) -> bool:
    """Whether the list of all locks gives the files the same devices as stat."""
    mounts = (_PROC / "self/mountinfo").read_text(errors="replace").splitlines()
    devices = {line.split()[2] for line in mounts}
    return all(f"{os.major(dev)}:{os.minor(dev)}" in devices for dev, _ in files)


def _command_of(pid: int) -> str | None:
    try:
        arguments = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return None
    return shlex.join(os.fsdecode(argument) for argument in arguments) or None
