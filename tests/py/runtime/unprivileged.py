"""Processes for tests in which permissions, mounts and limits apply, even if root runs them.

A test gives them functions of modules, which they import anew.
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
    """From here on, permissions apply to this process even if its user is root."""
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
    """Enters a user namespace that has only this process's user and group, with the given numbers.

    Raises:
        PermissionError: This user may not make a namespace.
    """
    users, groups = f"{user} {os.geteuid()} 1", f"{group} {os.getegid()} 1"
    _check(_LIBC.unshare(_CLONE_NEWUSER | flags), "unshare")
    # After a change of its user, a process could not write to its own /proc/self otherwise.
    _check(_LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")
    # A user without a number in the new namespace could create no file there. A group may get a
    # number only after setgroups is given up.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(users)
    Path("/proc/self/gid_map").write_text(groups)


def enter_mount_namespace() -> None:
    """Enters a new mount namespace, whose mounts can't be seen outside.

    Raises:
        PermissionError: This user may not make a namespace.
    """
    if _LIBC.unshare(_CLONE_NEWNS) != 0:
        enter_user_namespace(os.geteuid(), os.getegid(), _CLONE_NEWNS)
    mount("none", Path("/"), "none", MS_REC | MS_PRIVATE)


class Child:
    """A process that is prepared by a function and then runs others."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self._pool = ProcessPoolExecutor(
            max_workers=1, mp_context=multiprocessing.get_context("spawn")
        )
        self._prepare = prepare
        self._is_prepared = False

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns or raises what the function does. The first call also prepares the process."""
        if not self._is_prepared:
            self._submit(self._prepare)
            self._is_prepared = True
        return self._submit(function, *arguments)

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(function, *arguments).result(timeout=120)

    def close(self) -> None:
        self._pool.shutdown()


def stderr_of(function: Callable[[], Any], file: Path) -> list[str]:
    """The lines that the function writes to stderr. They pass through `file`, which is removed."""
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
