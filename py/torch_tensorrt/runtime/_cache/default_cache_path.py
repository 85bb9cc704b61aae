"""Where a user's runtime cache is kept if they name no place."""

from __future__ import annotations

import logging
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

import platformdirs

from torch_tensorrt.runtime._cache.checked_path import checked_path

logger = logging.getLogger(__name__)

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_FOR_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_LINKS_FOLLOWED = 40  # as Linux does


def default_runtime_cache_path() -> str | None:
    """The path of the user's own runtime cache, for the TensorRT-RTX that is installed.

    It lies in the user's cache directory: `$XDG_CACHE_HOME/torch_tensorrt`, by default
    `~/.cache/torch_tensorrt`, on Linux. What is missing of that directory is made, with mode 0700;
    the file itself need not exist. Its name has TensorRT-RTX's version in it, because each version
    rejects, and would replace, the caches of others. So do GPUs of other models: where a machine
    has several, give each a path of its own instead.

    Kernels are code that runs with the user's rights, so a path is refused that anybody but the
    user and root could put a file at: the directory, the cache or its lock file belongs to another
    user or may be written by others, or a directory or symbolic link on the way there is another
    user's, or open to the renaming of what is in it. On Windows, whose directories inherit their
    owners' rights, nothing is refused.

    Returns:
        The path; None, after a warning that says why and what to do, where it is refused, is not
        valid UTF-8, or its directory can't be made.

    Thread safety: any thread, and any number of processes at once.
    """
    path = Path("runtime_cache.bin")
    try:
        directory = _user_cache_directory()
        path = directory / f"runtime_cache{_version_suffix()}.bin"
        checked_path(path)
        if sys.platform == "win32":
            directory.mkdir(parents=True, exist_ok=True)
        else:
            _make_private_directory(directory)
            for file in (path, Path(f"{path}.lock")):
                _check_file(file)
    except (OSError, ValueError, _NotPrivateError) as error:
        logger.warning(
            "There is no default runtime cache, since '%s' can't be trusted or made: %s. Mend "
            "that, let XDG_CACHE_HOME name a directory that is yours alone, or pass a path.",
            path,
            error,
        )
        return None
    return str(path)


def _user_cache_directory() -> Path:
    try:
        directory = Path(platformdirs.user_cache_dir("torch_tensorrt", appauthor=False))
    except RuntimeError as error:
        raise _NotPrivateError(str(error)) from error
    if not directory.is_absolute():  # what other versions of platformdirs answer
        raise _NotPrivateError(f"'{directory}' is in no home directory")
    return directory


def _version_suffix() -> str:
    try:
        # The package has imported it already if it is there.
        import tensorrt_rtx
    except ImportError:
        return ""
    return f"-{tensorrt_rtx.__version__}"


class _NotPrivateError(Exception):
    """Another user could decide what is at the path; the text says why."""


def _make_private_directory(path: Path) -> None:
    status = _follow(path, make_directories=True)
    assert status is not None
    _check_owner(path, status)
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise _NotPrivateError(_describe_mode(path, status))


def _check_file(path: Path) -> None:
    status = _follow(path)
    if status is None:
        return
    _check_owner(path, status)
    # Where nobody else may enter the directory, as in one that we made, the file's bits grant
    # nothing; and they are there whenever the user's umask is lax.
    directory = path.resolve().parent.stat()
    if status.st_mode & _WRITABLE_BY_OTHERS and directory.st_mode & _FOR_OTHERS:
        raise _NotPrivateError(_describe_mode(path, status))


def _check_owner(path: Path, status: os.stat_result) -> None:
    us = os.geteuid()
    if status.st_uid != us:
        raise _NotPrivateError(
            f"'{path}' belongs to user {_name(status.st_uid)}, not to {_name(us)}"
        )


def _follow(path: Path, make_directories: bool = False) -> os.stat_result | None:
    """The status of what is at `path`, after all links; None if nothing is.

    Raises _NotPrivateError if, on the way there, another user than root could put something else
    in the place of what is there.
    """
    here = Path("/")
    status = here.lstat()
    # Who owns the root directory is root, also where a user namespace shows another number.
    trusted = (os.geteuid(), status.st_uid)
    todo = list(reversed(path.absolute().parts[1:]))
    links = 0
    while todo:
        _check_is_not_swappable_in(here, status)
        name = todo.pop()
        if name == "..":
            here = here.parent
            status = here.lstat()
            continue
        entry = here / name
        try:
            status = entry.lstat()
        except FileNotFoundError:
            if not make_directories:
                return None
            with suppress(FileExistsError):
                entry.mkdir(mode=0o700)
            status = entry.lstat()
        # In a directory like /tmp anybody may have made it, and then may also replace it.
        if status.st_uid not in trusted:
            raise _NotPrivateError(f"'{entry}' belongs to user {_name(status.st_uid)}")
        if not stat.S_ISLNK(status.st_mode):
            here = entry
            continue
        links += 1
        if links > _LINKS_FOLLOWED:
            raise _NotPrivateError(f"'{path}' has too many symbolic links on its way")
        target = entry.readlink()
        todo += reversed(target.parts[target.is_absolute() :])
        if target.is_absolute():
            here = Path("/")
        status = here.lstat()
    return status


def _check_is_not_swappable_in(directory: Path, status: os.stat_result) -> None:
    # With the sticky bit, as in /tmp, only owners rename what is in it.
    is_sticky = status.st_mode & stat.S_ISVTX
    if status.st_mode & _WRITABLE_BY_OTHERS and not is_sticky:
        raise _NotPrivateError(_describe_mode(directory, status))


def _describe_mode(path: Path, status: os.stat_result) -> str:
    mode = stat.S_IMODE(status.st_mode)
    return f"others than its owner may write '{path}' (mode {mode:04o}, try chmod go-w)"


def _name(uid: int) -> str:
    import pwd  # not on Windows

    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:  # as in containers
        return str(uid)
