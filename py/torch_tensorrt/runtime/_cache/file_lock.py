"""The lock of a runtime cache file, the twin of core/util/file_lock.h.

The only module here that knows how a system locks files.
"""

# A path is used as written, which pathlib would change.
# ruff: noqa: PTH116, PTH120

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows, where locking is an error but importing is none
    fcntl = None  # type: ignore[assignment]

_SHORTEST_POLL = 0.0005  # seconds
_LONGEST_POLL = 0.01
_NOT_FOR_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)

_Release = Callable[[], None]


class _OfThisThread(threading.local):
    def __init__(self) -> None:
        self.blocks = 0  # of deferred_calls() that it is in
        self.deferred: deque[Callable[[], object]] = deque()


_of_this_thread = _OfThisThread()


class FileLockError(Exception):
    """The lock could not be taken. The message names the lock file and says why."""


def lock_path_of(path: str) -> str:
    """The lock file that guards `path`, by filelock's convention."""
    return path + ".lock"


@contextmanager
def file_lock(path: str, timeout: float, *, shared: bool = False) -> Iterator[None]:
    """Holds the lock on the lock file `path`, which is created where missing, for a block.

    It excludes, and is excluded by, `filelock.FileLock` and the C++ FileLock on that path; only
    holders of the shared lock go together. The exclusive one is taken by `filelock`. That has no
    shared one on a plain lock file, so readers take it by flock(2), which is what `filelock` uses.

    Args:
        path: the lock file itself. A symbolic link there is refused.
        timeout: seconds. At least one attempt is made.

    Raises:
        FileLockError: another holder kept it for `timeout`, or the system's reason.
    """
    if fcntl is None:
        raise FileLockError(f"Can't lock '{path}': this system has no flock")
    with deferred_calls():
        release = _lock(path, timeout, shared)
        try:
            yield
        finally:
            with suppress(OSError):  # then the end of its descriptor releases it
                release()


@contextmanager
def deferred_calls() -> Iterator[None]:
    """Makes `call_without_lock` of this thread wait for the end of the block."""
    _of_this_thread.blocks += 1
    try:
        yield
    finally:
        _of_this_thread.blocks -= 1
        _call_deferred()


def call_without_lock(function: Callable[[], object]) -> None:
    """Calls the function: at once, or when this thread has left its blocks of `deferred_calls`.

    For what the garbage collector runs anywhere, and for what waits for other threads. A block of
    `file_lock` is one of `deferred_calls` too.
    """
    _of_this_thread.deferred.append(function)
    _call_deferred()


def is_in_block() -> bool:
    """Whether this thread is in a block of `deferred_calls`."""
    return _of_this_thread.blocks > 0


def _call_deferred() -> None:
    while _of_this_thread.deferred and not is_in_block():
        _of_this_thread.deferred.popleft()()


def hold(file: int) -> None:
    """Marks an open file as one whose writer lives, for as long as it is open; never fails."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(file: int) -> bool:
    """Whether somebody else holds an open file, or that can't be told."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _lock(path: str, timeout: float, shared: bool) -> _Release:
    deadline = time.monotonic() + timeout
    try:
        if shared:
            release = _flock(path, fcntl.LOCK_SH, deadline)
        else:
            release = _lock_exclusively(path, deadline)
    except OSError as error:
        raise FileLockError(_reason(error, path)) from error
    if release is None:
        raise FileLockError(
            f"another holder kept the lock '{path}' for {round(timeout * 1000)} ms"
        )
    return release


def _reason(error: OSError, path: str) -> str:
    hint = ""
    if error.errno == errno.ELOOP:
        hint = " (a symbolic link is refused here)"
    elif error.errno in _NO_FLOCK:
        hint = " (its file system may have no flock)"
    action = "lock" if error.filename is None else "open"
    return f"Can't {action} lock file '{path}': {error.strerror or error}{hint}"


def _lock_exclusively(path: str, deadline: float) -> _Release | None:
    os.stat(os.path.dirname(path) or ".")  # filelock 3 would make a missing directory
    lock: BaseFileLock = FileLock(path)
    try:
        lock.acquire(max(0.0, deadline - time.monotonic()), _LONGEST_POLL)
    except Timeout:
        if isinstance(lock, SoftFileLock):
            raise _no_flock() from None
        return None
    except NotImplementedError:  # filelock 3.12 where there is no flock
        raise _no_flock() from None
    except OSError as error:
        if error.errno in _NOT_FOR_WRITING:
            # It opens the file for writing. To read it is enough for flock, and all that we may do
            # to a lock file that another user made.
            return _flock(path, fcntl.LOCK_EX, deadline)
        raise
    if isinstance(lock, SoftFileLock):
        # Where there is no flock filelock turns into this, which only filelock knows of.
        lock.release()
        raise _no_flock()
    return lock.release


def _no_flock() -> OSError:
    return OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _flock(path: str, operation: int, deadline: float) -> _Release | None:
    start = time.monotonic()
    while True:
        file = _open(path)
        try:
            if _try_flock(file, operation) and _is_current(file, path):
                return partial(_unlock, file)
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        now = time.monotonic()
        if now >= deadline:
            return None
        poll = min(max((now - start) / 8, _SHORTEST_POLL), _LONGEST_POLL)
        time.sleep(min(poll, deadline - now))


def _open(path: str) -> int:
    # O_NONBLOCK: a FIFO at the path would block. Without O_CREAT at first: in a sticky directory
    # Linux refuses it on somebody else's file, readable or not.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        return os.open(path, flags | os.O_CREAT, 0o644)


def _try_flock(file: int, operation: int) -> bool:
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_current(file: int, path: str) -> bool:
    """Whether the open file is the one at `path`: a file without a name guards nothing."""
    ours = os.fstat(file)
    if not stat.S_ISREG(ours.st_mode):
        raise FileLockError(f"Can't use '{path}' as a lock file: not a regular file")
    try:
        return os.path.samestat(ours, os.lstat(path))
    except FileNotFoundError:
        return False


def _unlock(file: int) -> None:
    # Closing alone would leave the lock with a forked child that has the descriptor too.
    try:
        fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        os.close(file)
