"""Decides whose kernels may be loaded. Its twin core/runtime/trusted_path.h has the rules."""

# Links are followed by hand. What pathlib changes about a path would matter.
# ruff: noqa: PTH109, PTH110, PTH115, PTH116, PTH118, PTH120

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_LINKS_FOLLOWED = 40  # as Linux does

# Returns why what is at a path can't be trusted, or an empty string if it can. Takes the path, its
# status and the users that may own it.
Refuse = Callable[[str, os.stat_result, frozenset[int]], str]


def _overflow_id(kind: str) -> int:
    """Returns the id that a user namespace shows for every id that it does not map."""
    try:
        return int(Path(f"/proc/sys/kernel/overflow{kind}").read_text())
    except (OSError, ValueError):
        return 65534


_OVERFLOW_UID = _overflow_id("uid")
_OVERFLOW_GID = _overflow_id("gid")


class NotTrustedError(Exception):
    """Somebody else could have put a file at the path. The message says why and what to do."""


class TrustedPath(NamedTuple):
    path: str  # absolute and without links
    status: os.stat_result | None  # None if nothing is there
    is_listed: bool  # in TORCHTRT_TRUSTED_PATHS
    users: frozenset[int]  # who may own a file there

    def check(self, opened: os.stat_result) -> None:
        """Raises NotTrustedError if the open file with the status `opened` is not trusted."""
        if not self.is_listed and (reason := _refusal(self.path, opened, self.users)):
            raise NotTrustedError(reason)


def resolve_trusted(path: str) -> TrustedPath | None:
    """Returns where `path` leads, or None if a directory on the way is missing.

    The caller must open it with O_NOFOLLOW and pass the open file's status to `TrustedPath.check`.
    On Windows, where directories inherit their owners' rights, everything is trusted.

    Raises:
        NotTrustedError: The path is not trusted.
        OSError: The system's error.
    """
    if sys.platform == "win32":
        status = os.stat(path) if os.path.exists(path) else None
        return TrustedPath(
            os.path.realpath(path), status, is_listed=True, users=frozenset()
        )
    place = walk(path, _refusal)
    if place is None:
        return None
    is_listed = _is_listed(place.path)
    if place.refusal and not is_listed:
        raise NotTrustedError(place.refusal)
    return TrustedPath(place.path, place.status, is_listed, place.users)


class Place(NamedTuple):
    """Where a path leads."""

    path: str  # absolute and without links
    status: os.stat_result | None  # None if nothing is there
    users: frozenset[int]  # who may own a file there
    refusal: (
        str  # of the first thing on the way that can't be trusted; empty if all can
    )


def walk(path: str, refuse: Refuse) -> Place | None:
    """Returns where `path` leads, or None if a directory on the way is missing.

    Raises OSError as `os.stat(path)` does.
    """
    try:
        return _walk(path, refuse)
    except OSError as error:
        text = f"stat '{path}': {error.strerror}"
        raise OSError(error.errno, text) from error


def _walk(path: str, refuse: Refuse) -> Place | None:
    here, status = "/", os.lstat("/")
    users = frozenset((os.geteuid(), status.st_uid))
    file_users = users
    if status.st_uid == _OVERFLOW_UID:
        file_users -= {_OVERFLOW_UID}
    refusal = refuse("/", status, users)
    names = path.split("/")[::-1]  # still to be followed, the last one first
    if not path.startswith("/"):
        names += reversed(os.getcwd().split("/"))
    links = 0
    while names:
        if not stat.S_ISDIR(status.st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        name = names.pop()
        if name in ("", "."):
            continue
        if name == "..":  # the parent has been checked
            here = os.path.dirname(here)
            status = os.lstat(here)
            continue
        entry = os.path.join(here, name)
        try:
            found = os.lstat(entry)
        except FileNotFoundError:
            return Place(entry, None, file_users, refusal) if not names else None
        is_on_the_way = stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode)
        may_be_roots = is_on_the_way and not status.st_mode & stat.S_ISVTX
        refusal = refusal or refuse(entry, found, users if may_be_roots else file_users)
        if not stat.S_ISLNK(found.st_mode):
            here, status = entry, found
            continue
        links += 1
        if links > _LINKS_FOLLOWED:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(entry)
        names += reversed(target.split("/"))
        if target.startswith("/"):
            here, status = "/", os.lstat("/")
    return Place(here, status, file_users, refusal)


def _is_listed(path: str) -> bool:
    for prefix in os.environ.get("TORCHTRT_TRUSTED_PATHS", "").split(":"):
        if prefix.startswith("/"):
            with suppress(OSError):
                place = walk(prefix, lambda *_: "")
                if place and f"{path}/".startswith(f"{place.path.rstrip('/')}/"):
                    return True
    return False


def _refusal(path: str, status: os.stat_result, users: frozenset[int]) -> str:
    is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    has_mode = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    writers = status.st_mode if has_mode and not is_sticky else 0
    owner = status.st_uid
    if owner not in users and not _is_our_group(status.st_gid):
        problem = f"it belongs to {user(owner)}, and not to a group of this user"
        remedy = f"chown -h {os.geteuid()}"
    elif writers & stat.S_IWOTH:
        problem = "everybody may write it"
        remedy = "chmod o-w"
    elif writers & stat.S_IWGRP and not _is_our_group(status.st_gid):
        problem = f"its group {_group(status.st_gid)} may write it, and this user is not a member"
        remedy = "chmod g-w"
    else:
        return ""
    return (
        f"'{path}' can't be trusted: {problem} (owner {user(owner)}, mode "
        f"{stat.S_IMODE(status.st_mode):04o}). Try {remedy} '{path}', or list it in "
        "TORCHTRT_TRUSTED_PATHS"
    )


def _is_our_group(group: int) -> bool:
    return group != _OVERFLOW_GID and group in (os.getegid(), *os.getgroups())


def user(uid: int) -> str:
    """Returns "alice (1001)", or "1001" for a user without a name, as in containers."""
    import pwd  # not on Windows

    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    import grp  # not on Windows

    try:
        return f"{grp.getgrgid(gid).gr_name} ({gid})"
    except KeyError:
        return str(gid)
