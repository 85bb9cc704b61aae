"""The kernels of one cache file and one object, on their way from one to the other."""

# A path is used as written, which pathlib would change.
# ruff: noqa: PTH116, PTH118

from __future__ import annotations

import hashlib
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import NamedTuple, Protocol

from torchtrt_cache.file_lock import FileLockError, LockWaits, file_lock, lock_path_of
from torchtrt_cache.kinds import RuntimeCacheKind, file_in, is_empty, names_to_load
from torchtrt_cache.objects import ObjectContents, ObjectGeneration
from torchtrt_cache.records import Record, read_record, record_path_of, write_record
from torchtrt_cache.runtime_cache_file import (
    Contents,
    FileGeneration,
    RuntimeCacheFile,
    generation_at,
)
from torchtrt_cache.unlocked_logger import unlocked_logger

_LOGGER = unlocked_logger("transfer")

_FIRST_PAUSE = 0.05  # seconds, as the other; after a conflict
_LONGEST_PAUSE = 2.0

Merge = Callable[[memoryview, memoryview], memoryview]
"""Returns the kernels of two serialized caches: those of the object, and ours.

Raises CannotMergeError.
"""


class CannotMergeError(RuntimeError):
    """Two caches can't be merged. The text is the reason."""


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
    MISSING = "missing"  # what was to be transferred is not there
    TRANSFERRED = "transferred"
    NOT_MERGED = "not merged"  # left undone, because nothing can merge the two here


class Transfer(NamedTuple):
    outcome: Outcome
    size: int = 0  # bytes that the receiver has now, of one that was written


class Transfers:
    """Moves kernels between the files of a directory and the objects under a URL.

    Nobody overwrites a file or an object whose kernels are not in what they write. So a file or
    object with other kernels is merged with what comes, or left alone. On an object store, ours
    never wins: an object that can't be merged stays as it is.

    One process of a machine transfers a file at a time, under the lock `<file>.remote.lock`. Errors
    are ObjectStoreErrors of the store, and RuntimeErrors of the disk; either leaves the receiver as
    it was.

    Thread safety: as that of the store.

    Args:
        store: The objects.
        directory: The files, which must be there.
        deadline: By time.monotonic(), for everything.
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
        """Brings the kernels of an object to the file with its name.

        Args:
            name: Of the object, and of the file in the directory.
            merge: None if nothing can merge here. Then the object replaces only a file that was
                never changed since the two were in step.
            on_first_byte: Called when it is known that the store works: the first byte is there, or
                there is nothing to fetch. Also if another process waits for that byte.

        Raises:
            CannotMergeError: The file stays as it is.
        """
        cache = os.path.join(self._directory, name)
        with self._locked(cache, on_first_byte) as announce:
            generation = self._store.generation(name, deadline=self._deadline)
            record = read_record(cache, self._store.url)
            if generation is None:
                announce()
                return Transfer(Outcome.MISSING)
            if _has_all_of(generation_at(cache), generation, record):
                announce()
                return Transfer(Outcome.IN_STEP)
            contents = self._store.read(
                name, on_first_byte=announce, deadline=self._deadline
            )
            if contents is None:
                return Transfer(Outcome.MISSING)
            return self._take(cache, contents, record, merge)

    def _take(
        self,
        cache: str,
        contents: ObjectContents,
        record: Record | None,
        merge: Merge | None,
    ) -> Transfer:
        """Adds the kernels of an object to a file. Requires the lock."""
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
                    # Else each start would fetch it again in vain.
                    self._note(cache, contents.generation, local.generation, False)
                    raise
            elif record and record.is_uploaded and record.file == local.generation:
                data = contents.data
            else:
                return Transfer(Outcome.NOT_MERGED)
            expected = None if local is None else local.generation
            replaced = file.replace(data, expected)
            if replaced is not None:
                # A merge adds nothing to the object if it only has the object's kernels.
                is_uploaded = len(data) == len(contents.data)
                generation = replaced.generation
                self._note(cache, contents.generation, generation, is_uploaded)
                if not replaced.is_written:
                    return Transfer(Outcome.IN_STEP)
                return Transfer(Outcome.TRANSFERRED, len(data))

    def push(self, name: str, merge: Merge | None) -> Transfer:
        """Brings the kernels of a file to the object with its name, and those of that to the file.

        Args:
            name: Of the object, and of the file in the directory.
            merge: None if nothing can merge here. Then the file only becomes a new object, or
                replaces the one that it has all kernels of.

        Raises:
            CannotMergeError: The object stays as it is.
        """
        cache = os.path.join(self._directory, name)
        if self.is_uploaded(name):
            return Transfer(Outcome.IN_STEP)
        with self._locked(cache, lambda: None):
            if self.is_uploaded(name):  # by another process
                return Transfer(Outcome.IN_STEP)
            local = self._file(cache).read()
            if local is None:
                return Transfer(Outcome.MISSING)
            if merge is None:
                return self._push_alone(name, cache, local)
            return self._push_merged(name, cache, local, merge)

    def is_uploaded(self, name: str) -> bool:
        """Whether the object was seen to have all kernels of the file, which it has now."""
        cache = os.path.join(self._directory, name)
        record = read_record(cache, self._store.url)
        return (
            record is not None
            and record.is_uploaded
            and record.file == generation_at(cache)
        )

    def _push_alone(self, name: str, cache: str, local: Contents) -> Transfer:
        """Requires the lock."""
        record = read_record(cache, self._store.url)
        generation = self._store.generation(name, deadline=self._deadline)
        if generation and not _has_all_of(local.generation, generation, record):
            return Transfer(Outcome.NOT_MERGED)
        put = self._store.replace(name, local.data, generation, deadline=self._deadline)
        if put is None:
            return Transfer(Outcome.NOT_MERGED)
        self._note(cache, put, local.generation, True)
        return Transfer(Outcome.TRANSFERRED, len(local.data))

    def _push_merged(
        self, name: str, cache: str, local: Contents, merge: Merge
    ) -> Transfer:
        """Requires the lock."""
        attempted = b""  # the digest of what was put last
        pause = _FIRST_PAUSE
        while True:
            contents = self._store.read(name, deadline=self._deadline)
            if contents is None:
                data, expected = local.data, None
            else:
                digest = _digest(contents.data)
                # Else the response to a put of ours was lost, or the bytes are the same anyway.
                if digest not in (attempted, _digest(local.data)):
                    data = merge(contents.data, local.data)
                else:
                    data = contents.data
                expected = contents.generation
                if len(data) == len(contents.data):  # the object has all of ours
                    self._bring_home(cache, contents.data, local, contents.generation)
                    was_ours = digest == attempted
                    outcome = Outcome.TRANSFERRED if was_ours else Outcome.IN_STEP
                    return Transfer(outcome, len(data))
            put = self._store.replace(name, data, expected, deadline=self._deadline)
            if put is not None:
                self._bring_home(cache, data, local, put)
                return Transfer(Outcome.TRANSFERRED, len(data))
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
        """Replaces the file by bytes that have all its kernels, and that the object has."""
        replaced = self._file(cache).replace(data, local.generation)
        if replaced is not None:  # else others saved meanwhile
            self._note(cache, generation, replaced.generation, True)

    def _note(
        self,
        cache: str,
        generation: ObjectGeneration,
        file: FileGeneration,
        is_uploaded: bool,
    ) -> None:
        write_record(cache, Record(self._store.url, generation, file, is_uploaded))

    def _file(self, cache: str) -> RuntimeCacheFile:
        return RuntimeCacheFile(cache, LockWaits(deadline=self._deadline))

    def _time_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    @contextmanager
    def _locked(
        self, cache: str, on_first_byte: Callable[[], None]
    ) -> Iterator[Callable[[], None]]:
        """Holds the lock of the file's transfers, and yields what announces the first byte.

        Who waits for the lock waits for a transfer, so that its first byte is theirs, too. The time
        of the lock file tells them: it is 0 until then.
        """
        path = lock_path_of(record_path_of(cache))

        def announce() -> None:
            with suppress(OSError):
                os.utime(path)
            on_first_byte()

        waits = LockWaits(timeout=math.inf, deadline=self._deadline)
        waits.stop = _HolderIsAnswered(path, on_first_byte)
        try:
            with file_lock(path, waits):
                with suppress(OSError):
                    os.utime(path, (0, 0))
                yield announce
        except FileLockError as error:
            raise RuntimeError(f"Can't transfer '{cache}': {error}") from error


class _HolderIsAnswered:
    """Never stops a wait for a lock, but looks meanwhile whether its holder has a first byte."""

    def __init__(self, path: str, on_first_byte: Callable[[], None]) -> None:
        self._path = path
        self._on_first_byte = on_first_byte

    def is_set(self) -> bool:
        with suppress(OSError):
            if os.stat(self._path).st_mtime > 0:
                self._on_first_byte()
        return False


def _has_all_of(
    file: FileGeneration | None, generation: ObjectGeneration, record: Record | None
) -> bool:
    """Whether a file has all kernels of an object, because it had them and only grew since."""
    return (
        file is not None
        and record is not None
        and record.object == generation
        and file.size >= record.file.size
    )


def _digest(data: memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
