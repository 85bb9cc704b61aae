"""The file of a runtime cache, the twin of core/runtime/RuntimeCacheFile.h."""

# A path is used as written, which pathlib would change.
# ruff: noqa: PTH104, PTH108, PTH115, PTH116, PTH118, PTH120, PTH208

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

from torch_tensorrt.runtime._cache.file_lock import (
    FileLockError,
    file_lock,
    hold,
    is_held,
    lock_path_of,
)
from torch_tensorrt.runtime._cache.unlocked_logger import unlocked_logger

_LOGGER = unlocked_logger(__name__)

# More would let many savers at once spend their time on merges that are thrown away.
_MERGES_WITHOUT_LOCK = 1
_READS_OF_A_CHANGING_FILE = 3
_LINKS_FOLLOWED = 40  # as Linux does
_COMPARE_CHUNK = 256 * 1024  # bytes

Allocate = Callable[[int], memoryview]
Merge = Callable[[memoryview, memoryview], memoryview]


class FileGeneration(NamedTuple):
    """Tells one content of a file from the next.

    Each save makes the time grow, however coarse the system's clock is and whichever inode it gives
    out again.
    """

    device: int
    inode: int
    size: int  # bytes
    mtime_ns: int


class RuntimeCacheFile:
    """A cache file that any number of processes share.

    Each does so through an object of this class, through the C++ one, or a tool of its own. The
    contract between them stands in core/runtime/RuntimeCacheFile.h: who reads the file holds
    `<path>.lock` shared, who writes it holds that exclusively, a new version replaces the file by a
    rename, and nobody overwrites a generation of it whose contents are not in the bytes written.

    Errors are RuntimeErrors naming path, operation and the system's reason. After any, no temporary
    file is left and the file is as it was; but for a write in place (see `save`), and but for a
    failure to sync the directory, which is the last step: then the new file is there and may be
    lost with the machine's power.

    One object at a time in one thread; two objects on one path may be used at once. POSIX only:
    elsewhere every load of a file and every save fails.

    Args:
        path: taken as written. The constructor touches no disk, and raises RuntimeError if it is
            empty or has a NUL in it.
        lock_timeout: seconds to wait for the lock.
    """

    def __init__(self, path: str, lock_timeout: float = 10.0) -> None:
        if not path:
            raise RuntimeError("The path of a runtime cache is empty")
        if "\0" in path:
            before = path.partition("\0")[0]
            raise RuntimeError(
                f"The path of a runtime cache has a NUL in it, after '{before}'"
            )
        self._path = path
        self._lock_timeout = lock_timeout
        # The one whose contents are in the caller's bytes; None: no file.
        self._known: FileGeneration | None = None
        self._warned_of_writing_in_place = False

    @property
    def path(self) -> str:
        return self._path

    def load(self, allocate: Allocate) -> int:
        """Reads the whole file, under the shared lock, and returns its size in bytes.

        0 for a missing or empty file: `allocate` was not called, and nothing was created on disk.
        Where there is no lock file and can be none, because its directory is closed to us, the file
        is read without the lock.

        Args:
            allocate: returns where to put that many bytes, more than 0. It is called anew should a
                program that takes no lock write the file meanwhile.
        """
        with self._context("load"):
            loaded = None
            if _generation_at(self._path) is not None:  # else no lock file is created
                with self._lock_to_read():
                    loaded = _read_whole(self._path, allocate)
        self._known = loaded
        if loaded is None:
            _LOGGER.info("There is no runtime cache at '%s' yet", self._path)
            return 0
        _LOGGER.info(
            "Loaded %d bytes from the runtime cache '%s'", loaded.size, self._path
        )
        return loaded.size

    def save(self, ours: memoryview, merge: Merge) -> int:
        """Writes `ours` durably and returns how many bytes were written.

        0 if they are on disk already, or are none. If the file is not the generation that this
        object last loaded or saved, `merge` decides what is written instead. The result is a
        generation that this object does not know, because what `merge` added is not in the caller's
        bytes: the next save merges again.

        The new file has the mode of the old one and, where the system allows it, its owner and
        group; a first one has 0666 less the umask. Temporary files that dead writers left are
        removed. Where a rename is impossible (a single file mounted into a container; a directory
        closed to us while the file is open to us) the file is written in place, with one warning an
        object: only then can a crash or an error, or a reader without the lock, meet a torn file.

        Args:
            ours: contiguous, of format "B".
            merge: given the bytes on disk, which are not in ours, and ours, returns what to write:
                new bytes, either argument or a part of it; empty if nothing is to be written. It is
                called without the lock; if another process saved meanwhile it is called anew, with
                the lock held. What it raises ends the save and is passed on.
        """
        with self._context("save"), ExitStack() as lock:
            return self._save(ours, merge, lock)

    def _save(self, ours: memoryview, merge: Merge, lock: ExitStack) -> int:
        if len(ours) > 0:
            _generation_at(self._path)  # so that what must be refused gets no lock file
        data = ours
        contained = self._known
        is_locked = False
        merges = 0
        while len(data) > 0:
            if not is_locked:
                lock.enter_context(self._lock())
                is_locked = True
            # What `merge` added is not in the caller's bytes, so a file with that is not one that
            # the next save may overwrite.
            is_ours = data is ours
            target = _follow_links(self._path)
            if merges == 0:
                _remove_stale_temporaries(target)
            current, is_there_already = _compare(target, data)
            if is_there_already:
                self._known = current if is_ours else None
                _LOGGER.info(
                    "The runtime cache '%s' has these %d bytes already",
                    self._path,
                    len(data),
                )
                return 0
            # The last condition: under our lock, only a program that takes none can have changed
            # the file again.
            if current in (None, contained) or merges > _MERGES_WITHOUT_LOCK:
                written = self._write(data, target, current)
                self._known = written if is_ours else None
                _sync_directory(_directory_of(target))
                _LOGGER.info(
                    "Saved %d bytes to the runtime cache '%s'", written.size, self._path
                )
                return written.size
            data = ours  # frees what the last round read and merged
            disk, contained = _read_to_merge(target)
            if (
                contained is not None
            ):  # else removed since, by a program without the lock
                if merges < _MERGES_WITHOUT_LOCK:
                    lock.close()
                    is_locked = False
                _LOGGER.info(
                    "Merging with the %d bytes that others saved to the runtime cache '%s'",
                    len(disk),
                    self._path,
                )
                data = merge(disk, ours)
            del disk
            merges += 1
        return 0

    def _write(
        self, data: memoryview, target: str, previous: FileGeneration | None
    ) -> FileGeneration:
        """`previous` is the file that is there, None if it is missing or empty."""
        try:
            return _replace(data, target, previous)
        except _CannotReplaceError as reason:
            with ExitStack() as opened:
                try:
                    file = opened.enter_context(_open(target, os.O_WRONLY))
                except _DiskError:
                    raise reason from None
                if not self._warned_of_writing_in_place:
                    self._warned_of_writing_in_place = True
                    _LOGGER.warning(
                        "The runtime cache '%s' is written in place, so a crash meanwhile can tear "
                        "it, because it can't be replaced: %s",
                        self._path,
                        reason,
                    )
                return _write_in_place(file, data, target, previous)

    def _context(self, operation: str) -> _Translation:
        """Says, in whatever error comes out of the block, what was not done to which file."""
        return _Translation(
            (_DiskError, FileLockError),
            lambda error: RuntimeError(
                f"Can't {operation} the runtime cache '{self._path}': {error}"
            ),
        )

    @contextmanager
    def _lock(self, *, shared: bool = False) -> Iterator[None]:
        with file_lock(lock_path_of(self._path), self._lock_timeout, shared=shared):
            yield

    @contextmanager
    def _lock_to_read(self) -> Iterator[None]:
        """No lock where the lock file does not exist and its directory is closed to us."""
        with ExitStack() as lock:
            try:
                lock.enter_context(self._lock(shared=True))
            except FileLockError:
                lock_path = lock_path_of(self._path)
                if os.path.lexists(lock_path) or _may_create_in(
                    _directory_of(lock_path)
                ):
                    raise
                _LOGGER.info(
                    "Reading the runtime cache '%s' without a lock: its directory is read-only",
                    self._path,
                )
            yield


class _Translation:
    """A block out of which some errors come as others.

    This is no generator, because CPython 3.12 and later leave one that raises another error than
    its block's in a reference cycle, with all its callers' variables.
    """

    def __init__(
        self,
        errors: type[Exception] | tuple[type[Exception], ...],
        translate: Callable[[Any], Exception],
    ) -> None:
        self._errors = errors
        self._translate = translate

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, self._errors):
            raise self._translate(error) from error


class _DiskError(Exception):
    """Reads like "open '/path': Permission denied"; what goes before it says `_context`."""

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.code = code


class _CannotReplaceError(_DiskError):
    """The file can't be replaced by a rename, whatever is done about its contents."""


def _doing(action: str, path: str) -> _Translation:
    return _Translation(
        OSError,
        lambda error: _DiskError(
            f"{action} '{path}': {error.strerror or error}", error.errno
        ),
    )


@contextmanager
def _open(path: str, flags: int, mode: int = 0) -> Iterator[int]:
    action = "create" if flags & os.O_CREAT else "open"
    with _doing(action, path):  # O_NONBLOCK: a FIFO at the path would block
        flags |= os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        file = os.open(path, flags, mode)
    try:
        yield file
    finally:
        os.close(file)


def _generation_of(status: os.stat_result) -> FileGeneration:
    return FileGeneration(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    )


def _checked_generation(status: os.stat_result, path: str) -> FileGeneration | None:
    """None for an empty file, which counts as a missing one."""
    if not stat.S_ISREG(status.st_mode):
        raise _DiskError(f"'{path}' is not a regular file")
    return _generation_of(status) if status.st_size > 0 else None


def _status(file: int, path: str) -> os.stat_result:
    with _doing("stat", path):
        return os.fstat(file)


def _generation_at(path: str) -> FileGeneration | None:
    with _doing("stat", path):
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return None
    return _checked_generation(status, path)


def _directory_of(path: str) -> str:
    return os.path.dirname(path) or "."


def _may_create_in(directory: str) -> bool:
    # With the effective ids. It knows of read-only mounts and immutable directories.
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=True)


def _follow_links(path: str) -> str:
    """The path that a rename replaces the file at, and not a link to it. It need not exist."""
    target = path
    for _ in range(_LINKS_FOLLOWED):
        try:
            link = os.readlink(target)
        except OSError:  # it is none
            return target
        target = os.path.join(os.path.dirname(target), link)
    raise _DiskError(f"follow '{path}': {os.strerror(errno.ELOOP)}")


def _read_fully(file: int, buffer: memoryview, offset: int, path: str) -> bool:
    """False if the file ends before the buffer is full."""
    with _doing("read", path):
        while len(buffer) > 0:
            n = os.preadv(file, [buffer], offset)
            if n == 0:
                return False
            buffer = buffer[n:]
            offset += n
    return True


def _write_fully(file: int, data: memoryview, offset: int, path: str) -> None:
    with _doing("write", path):
        while len(data) > 0:
            n = os.pwrite(file, data, offset)
            if n == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            data = data[n:]
            offset += n


def _sync(file: int, path: str) -> None:
    with _doing("fsync", path):
        os.fsync(file)


def _read_whole(path: str, allocate: Allocate) -> FileGeneration | None:
    """None, and `allocate` not called, for a missing or empty file."""
    for _ in range(_READS_OF_A_CHANGING_FILE):
        with ExitStack() as opened:
            try:
                file = opened.enter_context(_open(path, os.O_RDONLY))
            except _DiskError as error:
                if error.code == errno.ENOENT:
                    return None
                raise
            before = _checked_generation(_status(file, path), path)
            if before is None:
                return None
            is_whole = _read_fully(file, allocate(before.size), 0, path)
            if is_whole and _generation_of(_status(file, path)) == before:
                return before
    raise _DiskError(
        f"read '{path}': it kept changing, by a program that does not take the lock"
    )


def _read_to_merge(path: str) -> tuple[memoryview, FileGeneration | None]:
    buffer = memoryview(b"")

    def allocate(size: int) -> memoryview:
        nonlocal buffer
        buffer = memoryview(b"")  # frees the last one first
        buffer = memoryview(bytearray(size))
        return buffer

    generation = _read_whole(path, allocate)
    return buffer, generation


def _compare(path: str, data: memoryview) -> tuple[FileGeneration | None, bool]:
    """The generation that is there, None if it is missing or empty, and whether it is `data`."""
    with ExitStack() as opened:
        try:
            file = opened.enter_context(_open(path, os.O_RDONLY))
        except _DiskError as error:
            if error.code == errno.ENOENT:
                return None, False
            raise
        current = _checked_generation(_status(file, path), path)
        is_equal = (
            current is not None
            and current.size == len(data)
            and _holds_exactly(file, data, path)
        )
        return current, is_equal


def _holds_exactly(file: int, data: memoryview, path: str) -> bool:
    """Requires that the file has the size of `data`, which is not 0.

    Piece by piece, so that a save needs no second copy of a large cache.
    """
    # Not a memoryview's own comparison, which goes element by element.
    chunk = bytearray(min(_COMPARE_CHUNK, len(data)))
    # Caches of one size that differ do so at an end nearly always, in a header, a checksum or the
    # newest kernel.
    last = len(data) - len(chunk)
    for offset in (last, *range(0, last, len(chunk))):
        is_read = _read_fully(file, memoryview(chunk), offset, path)
        if not is_read or chunk != data[offset : offset + len(chunk)]:
            return False
    return True


def _remove_stale_temporaries(target: str) -> None:
    """To be called under the exclusive lock.

    That alone tells nothing of a writer that reached the same target by another name; that a living
    writer holds its temporary file does, whatever its process id means here.
    """
    directory, name = os.path.split(target)
    temporary_name = re.compile(re.escape(name) + r"\.[0-9]+-[0-9a-f]{16}\.tmp")
    # What can't be removed now is left to a later save.
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(directory or ".")
    for name in filter(temporary_name.fullmatch, names):
        path = os.path.join(directory, name)
        with (
            suppress(OSError, _DiskError),
            _open(path, os.O_RDONLY | os.O_NOFOLLOW) as file,
        ):
            if not is_held(file):
                os.unlink(path)
                _LOGGER.info("Removed '%s', left by a writer that died", path)


@contextmanager
def _temporary_file(target: str, mode: int) -> Iterator[tuple[int, str]]:
    """A new file beside the target, open for a block that ends by renaming it.

    It is gone after a block that raises.
    """
    path = f"{target}.{os.getpid()}-{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with ExitStack() as opened:
        try:
            file = opened.enter_context(_open(path, flags, mode))
        except _DiskError as error:
            if error.code in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise _CannotReplaceError(str(error)) from error
            raise
        try:
            hold(file)
            yield file, path
        except BaseException:
            with suppress(OSError):
                os.unlink(path)
            raise


def _rename(path: str, target: str) -> None:
    try:
        os.rename(path, target)
    except OSError as error:
        # EBUSY: the target is a mount point. EPERM, EACCES: somebody else's file in a sticky
        # directory, for example.
        if error.errno in (errno.EBUSY, errno.EPERM, errno.EACCES):
            raise _CannotReplaceError(
                f"rename '{path}' to '{target}': {error.strerror}"
            ) from error
        raise _DiskError(f"rename to '{target}': {error.strerror}") from error


def _take_over_owner_and_mode(file: int, path: str, old: os.stat_result) -> None:
    try:
        # Only root may give a file away; a member of the group may still give it to the group.
        try:
            os.fchown(file, old.st_uid, old.st_gid)
        except OSError:
            os.fchown(file, -1, old.st_gid)
    except OSError as error:
        _LOGGER.debug(
            "Can't keep owner and group of the runtime cache: %s", error.strerror
        )
    with _doing("chmod", path):
        os.fchmod(file, old.st_mode & 0o777)


def _set_time_after(file: int, previous: FileGeneration | None, path: str) -> None:
    """Gives the file a time that its predecessor had not.

    Written within the tick of the clock that its predecessor was written in, or after the clock was
    set back, it would look like it if it also had its inode and size.
    """
    status = _status(file, path)
    if previous is None or status.st_mtime_ns > previous.mtime_ns:
        return
    try:
        os.utime(file, ns=(status.st_atime_ns, previous.mtime_ns + 1))
    except OSError as error:  # written in place, by somebody who does not own it
        _LOGGER.debug("Can't set the time of '%s': %s", path, error.strerror)


def _sync_directory(directory: str) -> None:
    with ExitStack() as opened:
        try:
            file = opened.enter_context(_open(directory, os.O_RDONLY | os.O_DIRECTORY))
        except _DiskError as error:
            if error.code == errno.EACCES:
                return  # we may write it but not list it; there is no other way to sync it
            raise
        try:
            _sync(file, directory)
        except _DiskError as error:
            if error.code != errno.EINVAL:  # some file systems can't
                raise


def _replace(
    data: memoryview, target: str, previous: FileGeneration | None
) -> FileGeneration:
    old = None
    with suppress(OSError):
        old = os.stat(target)  # of an empty file too
    with _temporary_file(target, 0o666 if old is None else 0o600) as (file, path):
        if old is not None:
            _take_over_owner_and_mode(file, path, old)
        _write_fully(file, data, 0, path)
        _set_time_after(file, previous, path)
        _sync(file, path)
        written = _generation_of(_status(file, path))
        _rename(path, target)
    return written


def _write_in_place(
    file: int, data: memoryview, target: str, previous: FileGeneration | None
) -> FileGeneration:
    old_size = previous.size if previous is not None else 0
    # What needs new space comes first: when the disk is full, nothing of the old contents has been
    # touched yet.
    head = min(old_size, len(data))
    try:
        _write_fully(file, data[head:], head, target)
        _sync(file, target)
    except BaseException:
        try:
            os.ftruncate(file, old_size)
        except OSError:
            _LOGGER.error(
                "Can't cut '%s' back to %d bytes: it is damaged", target, old_size
            )
        raise
    _write_fully(file, data[:head], 0, target)
    with _doing("truncate", target):
        os.ftruncate(file, len(data))
    _set_time_after(file, previous, target)
    _sync(file, target)
    return _generation_of(_status(file, target))
