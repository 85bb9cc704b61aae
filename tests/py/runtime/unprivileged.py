"""Processes for tests in which permissions, mounts and limits count, whoever runs them.

What a test gives them to run is a function of a module, which is imported there anew.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_PR_SET_DUMPABLE = 4
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18

Run = Callable[..., Any]


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


def give_up_capabilities() -> None:
    """From here on permissions count for this process, as they do for everybody but root."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    _check(_LIBC.capset(header, none), "capset")


def mount(source: str, target: Path, kind: str, flags: int, options: str = "") -> None:
    arguments = (str(source), str(target), kind, flags, options)
    _check(
        _LIBC.mount(
            *(
                (
                    ctypes.c_ulong(argument)
                    if isinstance(argument, int)
                    else argument.encode()
                )
                for argument in arguments
            )
        ),
        f"mount {target}",
    )


def enter_user_namespace(user: int, group: int, flags: int = 0) -> None:
    """This process's user and group have these numbers there, and nobody else has one.

    Raises PermissionError if this user may have no namespace.
    """
    users, groups = f"{user} {os.geteuid()} 1", f"{group} {os.getegid()} 1"
    _check(_LIBC.unshare(_CLONE_NEWUSER | flags), "unshare")
    # Who has changed the user may not write to their own /proc/self otherwise.
    _check(_LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")
    # Without a number in the new namespace this user could create no file there. A group may have
    # one only where setgroups is given up.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(users)
    Path("/proc/self/gid_map").write_text(groups)


def enter_mount_namespace() -> None:
    """Raises PermissionError if this user may have none here. No mount in it is seen outside."""
    if _LIBC.unshare(_CLONE_NEWNS) != 0:
        enter_user_namespace(os.geteuid(), os.getegid(), _CLONE_NEWNS)
    mount("none", Path("/"), "none", MS_REC | MS_PRIVATE)


class Child:
    """A process, prepared by a function, that runs others."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self._pool = ProcessPoolExecutor(
            max_workers=1, mp_context=multiprocessing.get_context("spawn")
        )
        self._prepare = prepare
        self._is_prepared = False

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns or raises; the first call what preparing raises."""
        if not self._is_prepared:
            self._submit(self._prepare)
            self._is_prepared = True
        return self._submit(function, *arguments)

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(function, *arguments).result(timeout=120)

    def close(self) -> None:
        self._pool.shutdown()


def stderr_of(function: Callable[[], Any], file: Path) -> list[str]:
    """What the function writes to this process's stderr, by way of `file`, which is removed."""
    sys.stderr.flush()
    before = os.dup(2)
    with file.open("wb") as captured:
        os.dup2(captured.fileno(), 2)
        try:
            function()
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
    lines = file.read_text().splitlines()
    file.unlink()
    return lines
