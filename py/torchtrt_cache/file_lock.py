"""The lock of a runtime cache file, the twin of core/util/file_lock.h.

No other module here knows how a system locks files.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

try:
    import fcntl
except ImportError:  # Windows, where importing must work and locking raises an error
    fcntl = None  # type: ignore[assignment]

# Seconds. poll_interval() in core/util/file_lock.cpp explains these intervals.
_SHORTEST_POLL = 0.0001
_USUAL_POLL = 0.005
_LONGEST_POLL = 0.05

_REPLACEMENTS_WITHOUT_PAUSE = 16  # as in core/util/file_lock.cpp
_HELD_BY_OTHERS = (errno.EWOULDBLOCK, errno.EACCES)  # EACCES: fcntl emulates flock
_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class _OfThisThread(threading.local):
    def __init__(self) -> None:
        self.blocks = 0  # number of deferred_calls() blocks that the thread is in
        self.deferred: deque[Callable[[], object]] = deque()


_of_this_thread = _OfThisThread()


class FileLockError(Exception):
    """The lock could not be taken. The message names the lock file and says why."""


class LockIsHeldError(FileLockError):
    """Another holder kept the lock."""


class Stop(Protocol):
    """A flag like `threading.Event`."""

    def is_set(self) -> bool: ...


@dataclass
class LockWaits:
    """How long to wait for locks, and how long the waits have taken. All times are in seconds."""

    timeout: float = 10.0  # of each wait
    deadline: float = math.inf  # of all waits, by time.monotonic()
    stop: Stop | None = None  # once it is set, all waits end within 50 ms
    waited: float = 0.0


def lock_path_of(path: str) -> str:
    """Returns the lock file that guards `path`, by filelock's convention."""
    return path + ".lock"


@contextmanager
def file_lock(path: str, waits: LockWaits, *, shared: bool = False) -> Iterator[None]:
    """Holds the lock on the lock file `path` during a block. Creates the file if it is missing.

    The lock excludes, and is excluded by, `filelock.FileLock` and the C++ FileLock on that path.
    Only shared holders can hold it at the same time. Like the C++ lock, it is an flock(2) lock. If
    the lock file was unlinked or replaced, the lock of the file at the path is taken instead. A
    forked child does not release the lock.

    Args:
        path: The lock file itself, which must be a regular file. A symbolic link is refused.
        waits: How long to try. At least one attempt is made. The wait is added to `waited`.

    Raises:
        LockIsHeldError: Another holder kept the lock for that long.
        FileLockError: The system refused the lock. The message says why.
    """
    with deferred_calls(), long_file_lock(path, waits, shared=shared):
        yield


@contextmanager
def long_file_lock(
    path: str, waits: LockWaits, *, shared: bool = False
) -> Iterator[None]:
    """A `file_lock` for a block that may take minutes. It does not defer calls.

    Nothing that this thread calls during the block may take the same lock.
    """
    if fcntl is None:
        raise FileLockError(f"Can't lock '{path}': this system has no flock")
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with closing(_LockFile(path)) as lock_file:
        waited_before = waits.waited
        if not lock_file.acquire(operation, waits):
            milliseconds = round((waits.waited - waited_before) * 1000)
            raise LockIsHeldError(
                f"another holder kept the lock '{path}' for {milliseconds} ms"
            )
        yield


@contextmanager
def deferred_calls() -> Iterator[None]:
    """Makes this thread's `call_without_lock` wait for the end of the block."""
    _of_this_thread.blocks += 1
    try:
        yield
    finally:
        _of_this_thread.blocks -= 1
        _call_deferred()


def call_without_lock(function: Callable[[], object]) -> None:
    """Calls the function at once, or when this thread has left all `deferred_calls` blocks.

    For functions that the garbage collector may run anywhere, and for those that wait for other
    threads. A `file_lock` block is a `deferred_calls` block too.
    """
    _of_this_thread.deferred.append(function)
    _call_deferred()


def is_in_block() -> bool:
    """Whether this thread is in a `deferred_calls` block."""
    return _of_this_thread.blocks > 0


def _call_deferred() -> None:
    while _of_this_thread.deferred and not is_in_block():
        _of_this_thread.deferred.popleft()()


def create_lock_file(path: str, cache: os.stat_result | None) -> None:
    """Creates the lock file of a cache.

    The lock file gets the cache's mode without the rights of others, because whoever can read it
    can hold the lock. Its owner may always read and write it. It gets the cache's owner and group
    if the system allows it.

    Args:
        path: The lock file.
        cache: The cache's status. None if there is no cache yet.

    Raises:
        OSError: The system's error. FileExistsError if something is already there.
    """
    mode = 0o660 if cache is None else cache.st_mode & 0o770 | 0o600
    file = _open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        if cache is not None:
            with suppress(OSError):
                take_over_owner(file, cache)
            os.fchmod(file, mode)
    finally:
        os.close(file)


def take_over_owner(file: int, old: os.stat_result) -> None:
    """Gives an open file the owner and group of another file, or at least its group."""
    # Only root may change the owner. A member of the group may still change the group.
    try:
        os.fchown(file, old.st_uid, old.st_gid)
    except OSError:
        os.fchown(file, -1, old.st_gid)


def hold(file: int) -> bool:
    """Marks a new file as one whose writer lives, until it is closed.

    Returns False if another writer has just taken it for a leftover.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(file).st_nlink > 0
    except BlockingIOError:
        return False
    except OSError:  # nobody removes leftovers from a file system without locks
        return True


def is_held(file: int) -> bool:
    """Returns False only if nobody else holds the open file."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


class _LockFile:
    """A lock file that stays open from the first attempt until `close`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._owner: int | None = None  # the process that took the lock

    def acquire(self, operation: int, waits: LockWaits) -> bool:
        """Takes the lock. Returns False if somebody else holds it until the wait ends."""
        start = time.monotonic()
        longest = max(0.0, min(waits.timeout, waits.deadline - start))
        waited = 0.0
        replacements = 0
        try:
            while True:
                if self._try_open() and self._try_lock(operation):
                    if self._is_current():
                        return True
                    self.close()
                    replacements += 1
                    if replacements < _REPLACEMENTS_WITHOUT_PAUSE:
                        continue
                is_stopped = waits.stop is not None and waits.stop.is_set()
                if waited >= longest or is_stopped:
                    return False
                time.sleep(min(_poll_interval(waited), longest - waited))
                waited = min(time.monotonic() - start, longest)
        finally:
            waits.waited += waited

    def close(self) -> None:
        """Releases the lock if this process owns it. Never fails."""
        if self._file is None:
            return
        # Closing alone would leave the lock with a forked child that has the descriptor too. The
        # child itself must not unlock, because that would release its parent's lock.
        if self._owner == os.getpid():
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)
        with suppress(OSError):
            os.close(self._file)
        self._file = self._owner = None

    def _try_open(self) -> bool:
        """Opens the file unless it is open. Returns False while a lease on it is being broken."""
        if self._file is None:
            try:
                self._file = _open_to_read(self._path)
            except BlockingIOError:
                return False
            except OSError as error:
                is_link = error.errno == errno.ELOOP
                hint = " (a symbolic link is refused here)" if is_link else ""
                raise self._failure("open", error, hint) from error
        return True

    def _try_lock(self, operation: int) -> bool:
        """Returns False if somebody else holds the lock."""
        assert self._file is not None
        try:
            try:
                fcntl.flock(self._file, operation | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise
                self._open_to_write()
                fcntl.flock(self._file, operation | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD_BY_OTHERS:
                return False
            is_unsupported = error.errno in _NO_FLOCK
            hint = " (its file system may have no flock)" if is_unsupported else ""
            raise self._failure("lock", error, hint) from error
        self._owner = os.getpid()
        return True

    def _open_to_write(self) -> None:
        """Opens the file again, for NFS, where an exclusive lock needs a writable descriptor."""
        assert self._file is not None
        try:
            writable = _open(self._path, os.O_RDWR)
        except OSError as error:
            hint = " (its file system needs write access to lock it)"
            raise self._failure("open", error, hint) from error
        os.close(self._file)
        self._file = writable

    def _is_current(self) -> bool:
        """Whether the open file is still the one at the path. An unlinked file guards nothing."""
        assert self._file is not None
        try:
            ours = os.fstat(self._file)
            if not stat.S_ISREG(ours.st_mode):
                raise FileLockError(
                    f"Can't use '{self._path}' as a lock file: not a regular file"
                )
            return ours.st_nlink > 0 and os.path.samestat(ours, os.lstat(self._path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise self._failure("examine", error) from error

    def _failure(self, action: str, error: OSError, hint: str = "") -> FileLockError:
        return FileLockError(
            f"Can't {action} lock file '{self._path}': {error.strerror}{hint}"
        )


def _poll_interval(waited: float) -> float:
    usual = min(waited / 8, _USUAL_POLL)
    return min(max(usual, waited / 100, _SHORTEST_POLL), _LONGEST_POLL)


def _open_to_read(path: str) -> int:
    # First without O_CREAT: in a sticky directory Linux refuses that flag for somebody else's
    # file, even if it is readable.
    try:
        return _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return _open(path, os.O_RDONLY | os.O_CREAT)


def _open(path: str, flags: int, mode: int = 0o644) -> int:
    # O_NONBLOCK: a FIFO at the path, or a lease that another process must give up, would block.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
