"""The file of a runtime cache, the twin of core/runtime/RuntimeCacheFile.h."""

# Paths are used as written. pathlib would change them.
# ruff: noqa: PTH108, PTH118, PTH120, PTH208

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

from torchtrt_cache.cache_files import temporaries_among
from torchtrt_cache.file_lock import (
    FileLockError,
    LockIsHeldError,
    LockWaits,
    create_lock_file,
    file_lock,
    hold,
    is_held,
    lock_path_of,
    take_over_owner,
)
from torchtrt_cache.trust import NotTrustedError, TrustedPath, resolve_trusted
from torchtrt_cache.unlocked_logger import unlocked_logger

_LOGGER = unlocked_logger("runtime_cache_file")

_READS_OF_A_CHANGING_FILE = 3
_FIRST_MODE = 0o664  # of a new cache, less the umask
_COMPARE_CHUNK = 256 * 1024  # bytes
_TEMPORARY_SUFFIX = ".tmp"
_OFFER_SUFFIX = ".merge"
_LARGEST_OFFER = 64 << 20  # bytes, so that many savers do not fill the disk

Allocate = Callable[[int], bytearray | memoryview]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class FileGeneration(NamedTuple):
    """Identifies one version of a file's contents. Opaque to everyone but RuntimeCacheFile.

    Each write increases the time, so two versions differ even if the system's clock is coarse and
    the file system reuses an inode.
    """

    device: int
    inode: int
    size: int  # bytes
    mtime_ns: int


def generation_at(path: str) -> FileGeneration | None:
    """Returns the generation of the file, without taking its lock.

    Returns None if the file is missing or empty, or if its status can't be read.
    """
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return _generation_of(status) if status.st_size > 0 else None


class Contents(NamedTuple):
    data: memoryview  # writable
    generation: FileGeneration


class Replaced(NamedTuple):
    generation: FileGeneration  # of the file, which now has the given bytes
    is_written: bool  # False: the file had them already
    in_place: str  # why the file was written in place; empty if it was not


class Turn(NamedTuple):
    """A saver's turn to merge."""

    is_saved: bool  # another saver has merged and written this saver's bytes
    offers: list[str]  # files with the bytes of waiting savers


class Draft(NamedTuple):
    """A file that the caller writes, and that `replace` can make the cache."""

    file: int  # open for reading and writing
    path: str


class OnlyInPlaceError(RuntimeError):
    """The file can only be written in place, which the caller forbids."""


class RuntimeCacheFile:
    """A store for the bytes of one runtime cache: a file that any number of processes share.

    It has no state of its own. core/runtime/RuntimeCacheFile.h has the contract of both runtimes:
    readers hold `<path>.lock` in shared mode, writers exclusively, both only for disk work. A write
    replaces the file by a rename.

    Errors are RuntimeErrors that name the path, the operation and the system's reason. After an
    error no temporary file is left and the file is unchanged, with two exceptions. A write in place
    (see `replace`) may fail half-way. If the last step fails, the sync of the directory, the new
    file is there but a power failure may undo it.

    Thread safety: immutable except for the LockWaits, which only one thread at a time may use.
    POSIX only: on other systems every read of a file and every write fails.

    Args:
        path: Used as written. The constructor does not access the disk. It raises RuntimeError if
            the path is empty or has a NUL in it.
        waits: The limits of waits for locks.
    """

    def __init__(self, path: str, waits: LockWaits) -> None:
        if not path:
            raise RuntimeError("The path of a runtime cache is empty")
        if "\0" in path:
            before = path.partition("\0")[0]
            raise RuntimeError(
                f"The path of a runtime cache has a NUL in it, after '{before}'"
            )
        self._path = path
        self._waits = waits

    def read(self, allocate: Allocate = bytearray) -> Contents | None:
        """Reads the whole file under the shared lock.

        Returns None, and creates nothing on disk, if the file is missing or empty. If this process
        may not open the lock file, or may not create a missing one, it reads without the lock.

        Args:
            allocate: Returns a buffer of the given size in bytes. It is called again if a program
                that takes no lock writes the file meanwhile.
        """
        contents = None
        try:
            target = _checked_target(self._path)
            status = target and target.status
            if target and status and status.st_size > 0:  # else no lock file is created
                with self._lock_to_read(status):
                    contents = _read_whole(target, allocate)
        except (OSError, FileLockError, NotTrustedError) as error:
            raise self._error("load", error) from error
        if contents is None:
            _LOGGER.info("There is no runtime cache at '%s' yet", self._path)
        else:
            _LOGGER.info(
                "Loaded %d bytes from the runtime cache '%s'",
                len(contents.data),
                self._path,
            )
        return contents

    def replace(
        self,
        data: memoryview,
        expected: FileGeneration | None,
        may_write_in_place: bool = True,
        draft: Draft | None = None,
    ) -> Replaced | None:
        """Writes `data` durably, under the exclusive lock, unless others have written meanwhile.

        Writes if the file is missing or empty, or still has the generation `expected`. Returns None
        if it has another generation. This is a conflict, after which the caller must read again. A
        file that already has exactly these bytes is left alone.

        The new file has the mode of the old one and, if the system allows it, its owner and group.
        A first file has mode 0664 less the umask. Temporary files that dead writers left are
        removed. If a rename is impossible, the file is written in place. This happens with a single
        file mounted into a container, and with a writable file in a directory that is not. Only
        then can a crash or an error leave a torn file, or a reader without the lock see one.

        Args:
            data: Contiguous, of format "B", not empty.
            expected: A generation that `read` or `replace` returned, or None.
            may_write_in_place: If False, raises OnlyInPlaceError instead of writing in place.
            draft: A draft that already has these bytes. It is renamed, so they are not copied.
        """
        try:
            target = _checked_target(self._path)
            with self._lock(self._path, target and target.status):
                replaced = _replace(
                    self._path, data, expected, may_write_in_place, draft
                )
        except (OSError, FileLockError, NotTrustedError) as error:
            raise self._error("save", error) from error
        if replaced is not None and replaced.is_written:
            _LOGGER.info(
                "Saved %d bytes to the runtime cache '%s'", len(data), self._path
            )
        elif replaced is not None:
            _LOGGER.info(
                "The runtime cache '%s' has these %d bytes already",
                self._path,
                len(data),
            )
        return replaced

    @contextmanager
    def draft(self) -> Iterator[Draft | None]:
        """Keeps an empty new file beside the target during a block. Yields None if it can't."""
        with ExitStack() as kept:
            draft = None
            with suppress(OSError, NotTrustedError):  # the next access reports it
                target = _checked_target(self._path)
                if target is not None:
                    file = _temporary_file(target.path, _FIRST_MODE)
                    draft = Draft(*kept.enter_context(file))
                    kept.callback(_remove, draft.path)
            yield draft

    @contextmanager
    def wait_for_turn(self, data: memoryview) -> Iterator[Turn]:
        """Waits until no other process is merging, and has the turn to merge during the block.

        Callers wait after a conflict, and before a write while another process has the turn. So
        of many simultaneous savers only one merges at a time, no merge is wasted, and `<path>.lock`
        stays free. The lock file of the turn is `<path>.merge.lock`.

        During the wait, `data` lies beside the file as an offer. The process that has the turn
        merges all offers, writes once and accepts them, so many savers need few writes. Waiting and
        offering only save work: if they fail, or the wait ends without the lock, the caller merges
        on its own. If the path is not trusted, nothing is created, and there is no wait.
        """
        target = None
        with suppress(OSError, NotTrustedError):  # the next access reports it
            target = resolve_trusted(self._path)
        if target is None:
            yield Turn(is_saved=False, offers=[])
            return
        with ExitStack() as turn:
            has_lock = is_saved = False
            with ExitStack() as offered:
                offer = None
                try:
                    if 0 < len(data) <= _LARGEST_OFFER:
                        offer = offered.enter_context(_offer(target.path, data))
                except OSError as error:
                    _LOGGER.debug(
                        "Can't offer the kernels for '%s' to other savers: %s",
                        self._path,
                        error.strerror,
                    )
                try:
                    lock = self._lock(self._turn_path(), target.status)
                    turn.enter_context(lock)
                    has_lock = True
                except FileLockError as error:
                    _LOGGER.info("Merging without waiting for others: %s", error)
                if offer is not None:
                    is_saved = os.fstat(offer).st_nlink == 0
            offers = []
            if has_lock and not is_saved:
                offers = _temporaries_of(target.path, _OFFER_SUFFIX)
            yield Turn(is_saved, offers)

    def is_turn_taken(self) -> bool:
        """Whether another process has the turn. Creates nothing. Returns False after an error."""
        path = lock_path_of(self._turn_path())
        if not os.path.lexists(path):
            return False
        try:
            with file_lock(path, LockWaits(timeout=0.0), shared=True):
                return False
        except LockIsHeldError:
            return True
        except FileLockError:  # `wait_for_turn` reports it
            return False

    def _turn_path(self) -> str:
        """Returns the path that is locked while merging."""
        return f"{self._path}.merge"

    def _error(
        self, operation: str, error: OSError | FileLockError | NotTrustedError
    ) -> RuntimeError:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        return RuntimeError(
            f"Can't {operation} the runtime cache '{self._path}': {reason}"
        )

    @contextmanager
    def _lock(
        self, path: str, cache: os.stat_result | None, *, shared: bool = False
    ) -> Iterator[None]:
        lock_path = lock_path_of(path)
        with suppress(OSError):  # it exists, or `file_lock` reports the error
            create_lock_file(lock_path, cache)
        with file_lock(lock_path, self._waits, shared=shared):
            # The lock file has the time of the cache's last use, because the cache's own time is
            # part of its generation. Only users who may write the lock file can set it.
            with suppress(OSError):
                os.utime(lock_path, follow_symlinks=False)
            yield

    @contextmanager
    def _lock_to_read(self, cache: os.stat_result) -> Iterator[None]:
        """Holds the shared lock. Holds none if this process may not open or create its file."""
        with ExitStack() as lock:
            try:
                lock.enter_context(self._lock(self._path, cache, shared=True))
            except FileLockError:
                reason = _reason_to_read_without(lock_path_of(self._path))
                if not reason:
                    raise
                _LOGGER.info(
                    "Reading the runtime cache '%s' without a lock: %s",
                    self._path,
                    reason,
                )
            yield


class _CannotReplaceError(OSError):
    """The file can't be replaced by a rename, whatever its contents."""


def _call(
    action: str,
    path: str,
    function: Callable[_Arguments, _Result],
    *args: _Arguments.args,
    **kwargs: _Arguments.kwargs,
) -> _Result:
    """Calls the function. Its OSErrors read like "open '/path': Permission denied"."""
    try:
        return function(*args, **kwargs)
    except OSError as error:
        text = f"{action} '{path}': {error.strerror or error}"
        raise OSError(error.errno, text) from error


@contextmanager
def _open(path: str, flags: int, mode: int = 0) -> Iterator[int]:
    flags |= os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # a FIFO would block
    action = "create" if flags & os.O_CREAT else "open"
    file = _call(action, path, os.open, path, flags, mode)
    try:
        yield file
    finally:
        os.close(file)


def _generation_of(status: os.stat_result) -> FileGeneration:
    return FileGeneration(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    )


def _checked_generation(status: os.stat_result, path: str) -> FileGeneration | None:
    """Returns None for an empty file, which counts as missing."""
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"'{path}' is not a regular file")
    return _generation_of(status) if status.st_size > 0 else None


def _status(file: int, path: str) -> os.stat_result:
    return _call("stat", path, os.fstat, file)


def _checked_target(path: str) -> TrustedPath | None:
    """Returns None if a directory on the way is missing.

    Raises if the path is not trusted or not a regular file. Then it must get no lock file.
    """
    target = resolve_trusted(path)
    if target is not None and target.status is not None:
        _checked_generation(target.status, path)
    return target


def _checked_status(file: int, target: TrustedPath) -> os.stat_result:
    status = _status(file, target.path)
    target.check(status)
    return status


def _directory_of(path: str) -> str:
    return os.path.dirname(path) or "."


def _reason_to_read_without(lock_path: str) -> str:
    """Returns why a cache may be read without its lock, or an empty string if it may not."""
    try:
        with _open(lock_path, os.O_RDONLY | os.O_NOFOLLOW):
            return ""
    except OSError as error:
        if error.errno == errno.EACCES:
            return "its lock file is closed to this user"
        # os.access also detects read-only mounts and immutable directories.
        may_create = os.access(
            _directory_of(lock_path), os.W_OK | os.X_OK, effective_ids=True
        )
        is_missing = error.errno == errno.ENOENT
        return "its directory is read-only" if is_missing and not may_create else ""


def _read_fully(file: int, buffer: memoryview, offset: int, path: str) -> bool:
    """Returns False if the file ends before the buffer is full."""
    while len(buffer) > 0:
        n = _call("read", path, os.preadv, file, [buffer], offset)
        if n == 0:
            return False
        buffer = buffer[n:]
        offset += n
    return True


def _write_fully(file: int, data: memoryview, offset: int, path: str) -> None:
    while len(data) > 0:
        n = _call("write", path, os.pwrite, file, data, offset)
        if n == 0:
            raise OSError(errno.EIO, f"write '{path}': {os.strerror(errno.EIO)}")
        data = data[n:]
        offset += n


def _read_whole(target: TrustedPath, allocate: Allocate) -> Contents | None:
    """Returns None for a missing or empty file."""
    path = target.path
    for _ in range(_READS_OF_A_CHANGING_FILE):
        with ExitStack() as opened:
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW
                file = opened.enter_context(_open(path, flags))
            except FileNotFoundError:
                return None
            generation = _checked_generation(_checked_status(file, target), path)
            if generation is None:
                return None
            try:
                data = memoryview(allocate(generation.size))
            except (MemoryError, RuntimeError) as error:  # RuntimeError: from torch
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
            is_whole = _read_fully(file, data, 0, path)
            if is_whole and _generation_of(_status(file, path)) == generation:
                return Contents(data, generation)
    text = f"read '{path}': it kept changing. A program writes it without the lock"
    raise OSError(errno.EBUSY, text)


def _compare(
    target: TrustedPath, data: memoryview
) -> tuple[os.stat_result | None, bool]:
    """Returns the status of the file, or None if it is missing, and whether it has this `data`."""
    with ExitStack() as opened:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW
            file = opened.enter_context(_open(target.path, flags))
        except FileNotFoundError:
            return None, False
        old = _checked_status(file, target)
        generation = _checked_generation(old, target.path)
        is_same_size = generation is not None and generation.size == len(data)
        return old, is_same_size and _holds_exactly(file, data, target.path)


def _holds_exactly(file: int, data: memoryview, path: str) -> bool:
    """Compares piece by piece, so that a save needs no second copy of a large cache.

    Requires that the file has the size of `data`, and that `data` is not empty.
    """
    # A bytearray, since two memoryviews are compared element by element.
    chunk = bytearray(min(_COMPARE_CHUNK, len(data)))
    # Different caches of the same size nearly always differ at one end: in a header, a checksum or
    # the newest kernel.
    last = len(data) - len(chunk)
    for offset in (last, *range(0, last, len(chunk))):
        is_read = _read_fully(file, memoryview(chunk), offset, path)
        if not is_read or chunk != data[offset : offset + len(chunk)]:
            return False
    return True


def _temporaries_of(target: str, suffix: str) -> list[str]:
    """Returns the temporary files of the target whose names end in the suffix.

    Returns none if the directory can't be listed.
    """
    directory, name = os.path.split(target)
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(directory or ".")
    found = temporaries_among(names).get(name, [])
    return [os.path.join(directory, n) for n in found if n.endswith(suffix)]


def _remove_stale_temporaries(target: str) -> None:
    """Removes the temporary files that dead writers left. Requires the exclusive lock.

    That lock does not exclude a writer that reached the same target by another name, but a living
    writer holds its temporary file. The process id in the name proves nothing, because each
    container has its own process ids.
    """
    for suffix in (_TEMPORARY_SUFFIX, _OFFER_SUFFIX):
        for path in _temporaries_of(target, suffix):
            # A later write removes what can't be removed now.
            with (
                suppress(OSError),
                _open(path, os.O_RDONLY | os.O_NOFOLLOW) as file,
            ):
                if not is_held(file):
                    os.unlink(path)
                    _LOGGER.info("Removed '%s', left by a writer that died", path)


@contextmanager
def _offer(target: str, data: memoryview) -> Iterator[int]:
    """Keeps bytes beside the file during a block, and yields the open offer."""
    with _temporary_file(target, 0o600) as (file, name):
        _write_fully(file, data, 0, name)
        offer = name.removesuffix(_TEMPORARY_SUFFIX) + _OFFER_SUFFIX
        _call("rename to", offer, os.rename, name, offer)
        try:
            yield file
        finally:
            accept_offer(offer)


def read_offer(offer: str) -> memoryview | None:
    """Returns the bytes of an offer. None if it can't be read or is not private to this user."""
    with suppress(OSError), _open(offer, os.O_RDONLY | os.O_NOFOLLOW) as file:
        status = os.fstat(file)
        # The mode counts because a link to another file of ours could hold what others wrote.
        is_private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
        if stat.S_ISREG(status.st_mode) and is_private:
            data = memoryview(bytearray(status.st_size))
            if len(data) > 0 and _read_fully(file, data, 0, offer):
                return data
    return None


def accept_offer(offer: str) -> None:
    """Tells the saver that made the offer that its bytes are in the file.

    Requires that they are durably written.
    """
    _remove(offer)


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


@contextmanager
def _temporary_file(target: str, mode: int) -> Iterator[tuple[int, str]]:
    """Yields a new file beside the target, open during a block that must rename it.

    If the block raises, the file is removed.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with ExitStack() as opened:
        while True:
            path = f"{target}.{os.getpid()}-{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"
            try:
                file = opened.enter_context(_open(path, flags, mode))
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise _CannotReplaceError(error.errno, error.strerror) from error
                raise
            if hold(file):
                break
            _remove(path)
        try:
            yield file, path
        except BaseException:
            _remove(path)
            raise


def _rename(path: str, target: str) -> None:
    try:
        _call("rename to", target, os.rename, path, target)
    except OSError as error:
        # EBUSY: the target is a mount point. EPERM, EACCES: somebody else's file in a sticky
        # directory, for example.
        if error.errno in (errno.EBUSY, errno.EPERM, errno.EACCES):
            raise _CannotReplaceError(error.errno, error.strerror) from error
        raise


def _take_over_owner_and_mode(file: int, path: str, old: os.stat_result) -> None:
    try:
        take_over_owner(file, old)
    except OSError as error:
        _LOGGER.debug(
            "Can't keep owner and group of the runtime cache: %s", error.strerror
        )
    _call("chmod", path, os.fchmod, file, old.st_mode & 0o777)


def _set_time_after(file: int, old: os.stat_result | None, path: str) -> None:
    """Gives the file a later time than its predecessor.

    Otherwise a file with the same inode and size would look like its predecessor, if it was written
    within the same tick of the clock or after the clock was set back.
    """
    status = _status(file, path)
    if old is None or status.st_mtime_ns > old.st_mtime_ns:
        return
    try:
        os.utime(file, ns=(status.st_atime_ns, old.st_mtime_ns + 1))
    except OSError as error:  # written in place by a user who does not own it
        _LOGGER.debug("Can't set the time of '%s': %s", path, error.strerror)


def _sync_directory(directory: str) -> None:
    with ExitStack() as opened:
        try:
            file = opened.enter_context(_open(directory, os.O_RDONLY | os.O_DIRECTORY))
        except PermissionError as error:
            if error.errno == errno.EACCES:
                return  # we may write but not list it, and there is no other way to sync it
            raise
        try:
            _call("fsync", directory, os.fsync, file)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some file systems can't
                raise


def _replace(
    path: str,
    data: memoryview,
    expected: FileGeneration | None,
    may_write_in_place: bool,
    draft: Draft | None,
) -> Replaced | None:
    """Does the work of `RuntimeCacheFile.replace`. Requires the exclusive lock."""
    trusted = resolve_trusted(path)  # again: a link may have changed before the lock
    if trusted is None:
        text = f"open '{path}': {os.strerror(errno.ENOENT)}"
        raise FileNotFoundError(errno.ENOENT, text)
    target = trusted.path
    old, is_there_already = _compare(trusted, data)
    if old is not None and is_there_already:
        return Replaced(_generation_of(old), is_written=False, in_place="")
    if old is not None and old.st_size > 0 and _generation_of(old) != expected:
        return None
    _remove_stale_temporaries(target)
    in_place = ""
    try:
        written = _rename_over(target, data, old, draft)
    except _CannotReplaceError as reason:
        with ExitStack() as opened:
            try:
                flags = os.O_WRONLY | os.O_NOFOLLOW
                file = opened.enter_context(_open(target, flags))
            except OSError:
                raise reason from None
            _checked_status(file, trusted)
            in_place = str(reason.strerror)
            if not may_write_in_place:
                raise OnlyInPlaceError(
                    f"Can't save the runtime cache '{path}': it can only be written in place, "
                    f"and a kill could tear it: {in_place}"
                ) from reason
            written = _write_in_place(file, data, target, old)
    _sync_directory(_directory_of(target))
    return Replaced(written, is_written=True, in_place=in_place)


def _rename_over(
    target: str, data: memoryview, old: os.stat_result | None, draft: Draft | None
) -> FileGeneration:
    """Renames a new file over the target. `old` is the target's status, or None."""
    mode = _FIRST_MODE if old is None else 0o600
    new = nullcontext(draft) if draft else _temporary_file(target, mode)
    with new as (file, path):
        if old is not None:
            _take_over_owner_and_mode(file, path, old)
        if draft is None:
            _write_fully(file, data, 0, path)
        _set_time_after(file, old, path)
        _call("fsync", path, os.fsync, file)
        written = _generation_of(_status(file, path))
        _rename(path, target)
    return written


def _write_in_place(
    file: int, data: memoryview, target: str, old: os.stat_result | None
) -> FileGeneration:
    old_size = old.st_size if old is not None else 0
    # What needs new space is written first. If the disk is full, the old contents are still intact.
    head = min(old_size, len(data))
    try:
        _write_fully(file, data[head:], head, target)
        _call("fsync", target, os.fsync, file)
    except BaseException:
        try:
            os.ftruncate(file, old_size)
        except OSError:
            _LOGGER.error(
                "Can't cut '%s' back to %d bytes: it is damaged", target, old_size
            )
        raise
    _write_fully(file, data[:head], 0, target)
    _call("truncate", target, os.ftruncate, file, len(data))
    _set_time_after(file, old, target)
    _call("fsync", target, os.fsync, file)
    return _generation_of(_status(file, target))
