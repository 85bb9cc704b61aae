"""Transfers kernels between cache files and objects."""

# Paths are used as written. pathlib would change them.
# ruff: noqa: PTH116, PTH118

from __future__ import annotations

import hashlib
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from enum import Enum
from typing import NamedTuple, Protocol

from torchtrt_cache.file_lock import (
    FileLockError,
    LockWaits,
    create_lock_file,
    lock_path_of,
    long_file_lock,
)
from torchtrt_cache.kinds import RuntimeCacheKind, file_in, is_empty, names_to_load
from torchtrt_cache.objects import ObjectContents, ObjectGeneration
from torchtrt_cache.records import (
    Record,
    read_record,
    record_path_of,
    remove_record,
    write_record,
)
from torchtrt_cache.runtime_cache_file import (
    Contents,
    Draft,
    FileGeneration,
    RuntimeCacheFile,
    generation_at,
)
from torchtrt_cache.trust import NotTrustedError, resolve_trusted
from torchtrt_cache.unlocked_logger import unlocked_logger

_LOGGER = unlocked_logger("transfer")

_REJECTED_BEFORE = "they could not be merged before, and neither has changed since"
_FIRST_PAUSE = 0.05  # seconds, after a conflict
_LONGEST_PAUSE = 2.0  # seconds

Merge = Callable[[memoryview, memoryview], memoryview]
"""Returns one serialized cache with the kernels of two: that of the object, and ours.

Raises CannotMergeError, or another RuntimeError if the failure may be temporary.
"""


class CannotMergeError(RuntimeError):
    """Two caches can't be merged. The text says why."""


class Store(Protocol):
    """The objects under a URL; see StoreProcess. Its methods raise ObjectStoreError."""

    @property
    def url(self) -> str: ...
    def generation(
        self, name: str, *, deadline: float = ...
    ) -> ObjectGeneration | None: ...
    def read(
        self,
        name: str,
        *,
        on_first_byte: Callable[[], None] = ...,
        deadline: float = ...,
        draft: Draft | None = ...,
    ) -> ObjectContents | None: ...
    def replace(
        self,
        name: str,
        data: memoryview,
        expected: ObjectGeneration | None,
        *,
        deadline: float = ...,
    ) -> ObjectGeneration | None: ...
    def names(self, *, deadline: float = ...) -> list[str]: ...


class Outcome(Enum):
    IN_STEP = "in step"  # the receiver has everything already
    MISSING = "missing"  # there is nothing to transfer
    TRANSFERRED = "transferred"
    NOT_MERGED = "not merged"  # left undone, because this machine can't merge the two


class Transfer(NamedTuple):
    name: str  # of the object and the file
    outcome: Outcome
    size: int = 0  # bytes that the receiver has now, if it was written


class Transfers:
    """Moves kernels between the files of a directory and the objects under a URL.

    A transfer never overwrites a file or an object unless all of its kernels are in what is
    written. So a receiver with other kernels is merged with what arrives, or left alone. An object
    that can't be merged stays as it is.

    At any time only one process per machine transfers a given file, under the lock
    `<file>.remote.lock`. Raises ObjectStoreError for errors of the store, and RuntimeError for
    errors of the disk. The receiver then stays as it was.

    Thread safety: the same as that of the store.

    Args:
        store: The objects.
        directory: Where the files are. It must exist.
        deadline: The time limit for everything, by time.monotonic().
    """

    def __init__(self, store: Store, directory: str, deadline: float) -> None:
        self._store = store
        self._directory = directory
        self._deadline = deadline

    def pull_kind(
        self,
        kind: RuntimeCacheKind,
        merge: Merge | None,
        on_first_byte: Callable[[], None],
    ) -> Transfer:
        """Pulls what a kind can start with: its object, or that of the newest older driver."""
        own = kind.file_name()
        pulled = self.pull(own, merge, on_first_byte)
        if pulled.outcome is Outcome.MISSING and is_empty(
            file_in(self._directory, kind)
        ):
            names = self._store.names(deadline=self._deadline)
            for name in names_to_load(names, kind)[1:]:
                older = self.pull(name, None, on_first_byte)
                if older.outcome is not Outcome.MISSING:
                    return older
        return pulled

    def pull(
        self,
        name: str,
        merge: Merge | None,
        on_first_byte: Callable[[], None] = lambda: None,
    ) -> Transfer:
        """Brings the kernels of an object to the file with the same name.

        Args:
            name: The name of the object, and of the file in the directory.
            merge: None if this machine can't merge. Then the object replaces a file only if the
                file has not changed since the two were in step.
            on_first_byte: Called when the store is known to work: the first byte has arrived, or
                there is nothing to fetch. Also called when another process knows that while this
                one waits for its transfer.

        Raises:
            CannotMergeError: The two can't be merged. The file stays as it is.
        """
        cache = os.path.join(self._directory, name)
        record = self._record(cache)
        # Without the lock, so that a process that needs nothing waits for no other's transfer.
        found = self._found_in_step(name, record, merge, on_first_byte)
        if found:
            return found
        with self._locked(cache, on_first_byte) as announce:
            record_before, record = record, self._record(cache)
            if record != record_before:  # another process has made a transfer meanwhile
                found = self._found_in_step(name, record, merge, announce)
                if found:
                    return found
            with self._draft(cache) as draft:
                contents = self._store.read(
                    name, on_first_byte=announce, deadline=self._deadline, draft=draft
                )
                if contents is None or len(contents.data) == 0:
                    announce()
                    return Transfer(name, Outcome.MISSING)
                return self._take(name, contents, draft, record, merge)

    def _found_in_step(
        self,
        name: str,
        record: Record | None,
        merge: Merge | None,
        on_first_byte: Callable[[], None],
    ) -> Transfer | None:
        """Returns the outcome of a pull if it needs no bytes of the object, or None.

        Raises CannotMergeError as `pull` does.
        """
        cache = os.path.join(self._directory, name)
        generation = self._store.generation(name, deadline=self._deadline)
        if generation is None:
            on_first_byte()
            remove_record(cache)  # a push brings the object back
            return Transfer(name, Outcome.MISSING)
        file = generation_at(cache)
        if _has_all_of(file, generation, record):
            on_first_byte()
            return Transfer(name, Outcome.IN_STEP)
        if merge and _is_rejected(file, generation, record):
            on_first_byte()
            raise CannotMergeError(_REJECTED_BEFORE)
        return None

    def _take(
        self,
        name: str,
        contents: ObjectContents,
        draft: Draft | None,
        record: Record | None,
        merge: Merge | None,
    ) -> Transfer:
        """Adds the kernels of an object to a file. Requires the lock.

        A draft, if there is one, has the object's contents.
        """
        cache = os.path.join(self._directory, name)
        file = self._file(cache)
        while True:
            local = file.read()
            is_ours = local is not None and _digest(local.data) == _digest(
                contents.data
            )
            if local is None or is_ours:
                data = contents.data
            elif merge is not None:
                try:
                    data = merge(contents.data, local.data)
                except CannotMergeError:
                    # Otherwise each start would fetch the object again for nothing.
                    self._note(
                        cache,
                        contents.generation,
                        local.generation,
                        is_uploaded=False,
                        has_object=False,
                    )
                    raise
            elif _is_older(local, contents, record):
                data = contents.data
            else:
                remove_record(cache)  # it is out of date
                return Transfer(name, Outcome.NOT_MERGED)
            expected = None if local is None else local.generation
            is_object = data is contents.data
            replaced = file.replace(data, expected, draft=draft if is_object else None)
            if replaced is not None:
                # A merge that is no longer than the object has only the object's kernels.
                is_uploaded = len(data) == len(contents.data)
                generation = replaced.generation
                self._note(
                    cache, contents.generation, generation, is_uploaded=is_uploaded
                )
                if not replaced.is_written:
                    return Transfer(name, Outcome.IN_STEP)
                return Transfer(name, Outcome.TRANSFERRED, len(data))

    def push(self, name: str, merge: Merge | None) -> Transfer:
        """Brings a file's kernels to the object with its name, and the object's to the file.

        Args:
            name: The name of the object, and of the file in the directory.
            merge: None if this machine can't merge. Then the file only becomes a new object, or
                replaces an object if the file has all its kernels.

        Raises:
            CannotMergeError: The two can't be merged. The object stays as it is.
        """
        cache = os.path.join(self._directory, name)
        with self._locked(cache, lambda: None) as announce:
            # Somebody may have deleted the object since.
            if self.is_uploaded(name) and self._store.generation(
                name, deadline=self._deadline
            ):
                return Transfer(name, Outcome.IN_STEP)
            local = self._file(cache).read()
            record = self._record(cache)  # after the file, whose writer may remove it
            if local is None:
                return Transfer(name, Outcome.MISSING)
            if merge is None:
                return self._push_alone(name, cache, local, record, announce)
            if record is not None and not record.has_object:
                generation = self._store.generation(name, deadline=self._deadline)
                if generation and _is_rejected(local.generation, generation, record):
                    raise CannotMergeError(_REJECTED_BEFORE)
            return self._push_merged(name, cache, local, merge, announce)

    def is_uploaded(self, name: str) -> bool:
        """Whether the last transfer found that the object has all kernels the file has now."""
        cache = os.path.join(self._directory, name)
        record = read_record(cache, self._store.url)
        return (
            record is not None
            and record.is_uploaded
            and record.file == generation_at(cache)
        )

    def _push_alone(
        self,
        name: str,
        cache: str,
        local: Contents,
        record: Record | None,
        announce: Callable[[], None],
    ) -> Transfer:
        """Requires the lock."""
        generation = self._store.generation(name, deadline=self._deadline)
        announce()
        if generation and not _has_all_of(local.generation, generation, record):
            contents = self._store.read(name, deadline=self._deadline)
            if contents is not None and len(contents.data) > 0:
                return self._compare(name, cache, local, contents)
            generation = contents and contents.generation
        put = self._store.replace(name, local.data, generation, deadline=self._deadline)
        if put is not None:
            self._note(cache, put, local.generation)
            return Transfer(name, Outcome.TRANSFERRED, len(local.data))
        contents = self._store.read(name, deadline=self._deadline)
        return self._compare(name, cache, local, contents)

    def _compare(
        self, name: str, cache: str, local: Contents, contents: ObjectContents | None
    ) -> Transfer:
        """Returns the outcome of a push that finds another generation of the object.

        The object may still have these bytes, if the response to their put or their record is lost.
        """
        if contents is None or _digest(contents.data) != _digest(local.data):
            return Transfer(name, Outcome.NOT_MERGED)
        self._note(cache, contents.generation, local.generation)
        return Transfer(name, Outcome.IN_STEP)

    def _push_merged(
        self,
        name: str,
        cache: str,
        local: Contents,
        merge: Merge,
        announce: Callable[[], None],
    ) -> Transfer:
        """Requires the lock."""
        attempted = b""  # the digest of what was put last
        pause = _FIRST_PAUSE
        while True:
            contents = self._store.read(
                name, on_first_byte=announce, deadline=self._deadline
            )
            announce()  # an empty or missing object has no first byte
            expected = contents and contents.generation
            if contents is None or len(contents.data) == 0:
                data = local.data
            else:
                digest = _digest(contents.data)
                # Otherwise the response to our put was lost, or the bytes are the same anyway.
                if digest not in (attempted, _digest(local.data)):
                    data = merge(contents.data, local.data)
                else:
                    data = contents.data
                if len(data) == len(contents.data):  # the object has all of ours
                    self._bring_home(cache, contents.data, local, contents.generation)
                    was_ours = digest == attempted
                    outcome = Outcome.TRANSFERRED if was_ours else Outcome.IN_STEP
                    return Transfer(name, outcome, len(data))
            put = self._store.replace(name, data, expected, deadline=self._deadline)
            if put is not None:
                self._bring_home(cache, data, local, put)
                return Transfer(name, Outcome.TRANSFERRED, len(data))
            attempted = _digest(data)
            time.sleep(min(random.uniform(0, pause), self._time_left()))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _bring_home(
        self,
        cache: str,
        data: memoryview,
        local: Contents,
        generation: ObjectGeneration,
    ) -> None:
        """Replaces the file by the object's bytes, which have all its kernels."""
        replaced = self._file(cache).replace(data, local.generation)
        if replaced is not None:  # otherwise others have saved meanwhile
            self._note(cache, generation, replaced.generation)

    def _note(
        self,
        cache: str,
        generation: ObjectGeneration,
        file: FileGeneration,
        *,
        is_uploaded: bool = True,
        has_object: bool = True,
    ) -> None:
        write_record(
            cache, Record(self._store.url, generation, file, is_uploaded, has_object)
        )

    def _record(self, cache: str) -> Record | None:
        """Returns the record of a file. Removes it if the file was removed or recreated since."""
        record = read_record(cache, self._store.url)
        file = generation_at(cache)
        if record and (file is None or file.size < record.file.size):
            remove_record(cache)
            return None
        return record

    def _file(self, cache: str) -> RuntimeCacheFile:
        return RuntimeCacheFile(cache, LockWaits(deadline=self._deadline))

    def _draft(self, cache: str) -> AbstractContextManager[Draft | None]:
        """Yields a draft only if the object becomes a first file. Others will likely be merged."""
        is_first = generation_at(cache) is None
        return self._file(cache).draft() if is_first else nullcontext()

    def _time_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    @contextmanager
    def _locked(
        self, cache: str, on_first_byte: Callable[[], None]
    ) -> Iterator[Callable[[], None]]:
        """Holds the lock of the file's transfers. Yields a function that announces the first byte.

        A process that waits for the lock waits for its holder's transfer, whose first byte counts
        as its own. It sees that byte by the time of the lock file, which is 0 until then.
        """
        try:
            resolve_trusted(cache)  # otherwise nothing is created beside it
        except NotTrustedError as error:
            raise RuntimeError(f"Can't transfer '{cache}': {error}") from error
        except OSError as error:
            raise RuntimeError(f"Can't transfer '{cache}': {error.strerror}") from error
        path = lock_path_of(record_path_of(cache))
        with suppress(OSError):  # it exists, or the lock reports the error
            create_lock_file(path, _status(cache))

        def announce() -> None:
            with suppress(OSError):
                os.utime(path)
            on_first_byte()

        waits = LockWaits(timeout=math.inf, deadline=self._deadline)
        waits.stop = _HolderIsAnswered(path, on_first_byte)
        try:
            with long_file_lock(path, waits):
                with suppress(OSError):
                    os.utime(path, (0, 0))
                yield announce
        except FileLockError as error:
            raise RuntimeError(f"Can't transfer '{cache}': {error}") from error


class _HolderIsAnswered:
    """Never stops a wait for a lock, but checks whether the lock's holder has a first byte."""

    def __init__(self, path: str, on_first_byte: Callable[[], None]) -> None:
        self._path = path
        self._on_first_byte = on_first_byte

    def is_set(self) -> bool:
        with suppress(OSError):
            if os.stat(self._path).st_mtime > 0:
                self._on_first_byte()
        return False


def _status(path: str) -> os.stat_result | None:
    """Returns None for a missing file."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _has_all_of(
    file: FileGeneration | None, generation: ObjectGeneration, record: Record | None
) -> bool:
    """Whether a file has all kernels of an object, because it had them and has only grown since."""
    return (
        file is not None
        and record is not None
        and record.has_object
        and record.object == generation
        and file.size >= record.file.size
    )


def _is_rejected(
    file: FileGeneration | None, generation: ObjectGeneration, record: Record | None
) -> bool:
    """Whether a file and an object could not be merged before, and neither has changed since."""
    return (
        record is not None
        and not record.has_object
        and record.object == generation
        and record.file == file
    )


def _is_older(local: Contents, contents: ObjectContents, record: Record | None) -> bool:
    """Whether an object has all kernels of a file, because it had them and has only grown since.

    A smaller object was recreated after somebody had deleted it.
    """
    return (
        record is not None
        and record.is_uploaded
        and record.file == local.generation
        and len(contents.data) >= len(local.data)
    )


def _digest(data: memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
