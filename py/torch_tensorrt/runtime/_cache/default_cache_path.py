"""The default place of a user's runtime cache."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

import platformdirs

from torch_tensorrt.runtime._cache.checked_path import checked_path
from torchtrt_cache.trust import NotTrustedError, Place, user, walk

logger = logging.getLogger(__name__)

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_FOR_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def default_runtime_cache_path() -> str | None:
    """Returns the path of the user's own cache, a directory with one file per kind of machine.

    On Linux it is `$XDG_CACHE_HOME/torch_tensorrt/`, by default `~/.cache/torch_tensorrt/`. Missing
    directories are created with mode 0700. If nobody else may enter the directory, caches and lock
    files in it lose their write permissions for others.

    Kernels are code that runs with the user's rights. The directory is therefore refused if anybody
    but the user and root could put a file there. That is the case if the directory, or a cache or
    lock file in it, belongs to another user or is writable by others. It is also the case if a
    directory or symbolic link on the way belongs to another user, or if others may rename what is
    in a directory on the way. This is stricter than the rule for other paths: groups do not count,
    and TORCHTRT_TRUSTED_PATHS changes nothing. On Windows, where directories inherit the rights of
    their owners, nothing is refused.

    Returns:
        The path, which ends in a separator. If the path is refused, is not valid UTF-8 or can't be
        created, logs a warning that says why and what to do, and returns None.

    Thread safety: may be called from any thread, and from any number of processes at once.
    """
    directory = Path("torch_tensorrt")
    try:
        directory = _user_cache_directory()
        _make_usable(directory)
    except (OSError, ValueError, NotTrustedError) as error:
        logger.warning(
            "There is no default runtime cache, because '%s' can't be trusted or created: %s. Fix "
            "that, set XDG_CACHE_HOME to a directory that is yours alone, or pass a path.",
            directory,
            error,
        )
        return None
    return f"{directory}{os.sep}"


def local_tier_of(url: str) -> str:
    """Returns the directory where this machine keeps what it shares with an object store.

    It is in the default cache's directory, and is created and refused by the same rules.

    Raises:
        RuntimeError: It is refused, or can't be created.
    """
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    try:
        directory = _user_cache_directory() / "remote" / name
        _make_usable(directory)
    except (OSError, ValueError, NotTrustedError) as error:
        raise RuntimeError(
            f"The runtime cache '{url}' has no place on this machine: {error}. Fix that, or set "
            "XDG_CACHE_HOME to a directory that is yours alone"
        ) from error
    return f"{directory}{os.sep}"


def _make_usable(directory: Path) -> None:
    checked_path(directory)
    if sys.platform == "win32":
        directory.mkdir(parents=True, exist_ok=True)
        return
    _make_private_directory(directory)
    for file in directory.iterdir():
        if file.name.endswith((".bin", ".lock")):
            _check_file(file)


def _user_cache_directory() -> Path:
    try:
        directory = Path(platformdirs.user_cache_dir("torch_tensorrt", appauthor=False))
    except RuntimeError as error:
        raise NotTrustedError(str(error)) from error
    if not directory.is_absolute():  # some versions of platformdirs return such a path
        raise NotTrustedError(f"'{directory}' is in no home directory")
    return directory


def _make_private_directory(path: Path) -> None:
    for directory in (*reversed(path.parents), path):
        place = _follow(directory)
        if place.status is None:
            Path(place.path).mkdir(mode=0o700, exist_ok=True)
    place = _follow(path)
    if place.status is None or not stat.S_ISDIR(place.status.st_mode):
        raise NotTrustedError(f"'{path}' is not a directory")
    _check_owner(place.path, place.status)
    if place.status.st_mode & _WRITABLE_BY_OTHERS:
        raise NotTrustedError(_describe_mode(place.path, place.status))


def _check_file(path: Path) -> None:
    place = _follow(path)
    if place.status is None:
        return
    _check_owner(place.path, place.status)
    if place.status.st_mode & _WRITABLE_BY_OTHERS:
        if Path(place.path).parent.stat().st_mode & _FOR_OTHERS:
            raise NotTrustedError(_describe_mode(place.path, place.status))
        # Nobody else could reach the file. A lax umask left the bits. With them, the file would
        # not be loaded.
        mode = stat.S_IMODE(place.status.st_mode) & ~_WRITABLE_BY_OTHERS
        with suppress(FileNotFoundError):  # a prune removed it
            Path(place.path).chmod(mode)


def _follow(path: Path) -> Place:
    """Raises NotTrustedError if another user than root could change where the path leads."""
    place = walk(str(path), _refusal)
    if place is None:
        raise NotTrustedError(f"the directory of '{path}' is missing")
    if place.refusal:
        raise NotTrustedError(place.refusal)
    return place


def _refusal(path: str, status: os.stat_result, users: frozenset[int]) -> str:
    # In a directory like /tmp anybody may have created it, and may then replace it.
    if status.st_uid not in users:
        return f"'{path}' belongs to user {user(status.st_uid)}"
    # With the sticky bit, as in /tmp, only owners may rename what is in it.
    is_directory = stat.S_ISDIR(status.st_mode)
    is_swappable = is_directory and not status.st_mode & stat.S_ISVTX
    if is_swappable and status.st_mode & _WRITABLE_BY_OTHERS:
        return _describe_mode(path, status)
    return ""


def _check_owner(path: str, status: os.stat_result) -> None:
    us = os.geteuid()
    if status.st_uid != us:
        raise NotTrustedError(
            f"'{path}' belongs to user {user(status.st_uid)}, not to {user(us)}"
        )


def _describe_mode(path: str, status: os.stat_result) -> str:
    mode = stat.S_IMODE(status.st_mode)
    return f"users other than its owner may write '{path}' (mode {mode:04o}, try chmod go-w)"
