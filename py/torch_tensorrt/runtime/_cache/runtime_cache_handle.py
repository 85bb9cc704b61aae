"""The cache handle of the Python runtime. The twin of core/runtime/RuntimeCacheHandle.h."""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import tensorrt_rtx as trt
import torch
from torch._C._profiler import _RecordFunctionFast

from torch_tensorrt.runtime._cache.checkpoint_schedule import Found
from torch_tensorrt.runtime._cache.checkpoint_thread import checkpoint_thread
from torch_tensorrt.runtime._cache.exit_deadline import exit_deadline
from torch_tensorrt.runtime._cache.forks import leak, start_over_in_children
from torch_tensorrt.runtime._cache.live_runtime_cache import (
    LiveRuntimeCache,
    Merged,
    digest_of,
)
from torch_tensorrt.runtime._cache.runtime_cache_statistics import (
    RuntimeCacheStatistics,
)
from torch_tensorrt.runtime._cache.tensor_memory import address_of, memory_of, tensor_of
from torchtrt_cache.file_lock import LockWaits, deferred_calls
from torchtrt_cache.kinds import (
    RuntimeCacheKind,
    UnknownKindError,
    file_in,
    files_to_load,
    is_directory,
    is_empty,
    kind_of_device,
)
from torchtrt_cache.records import remove_record
from torchtrt_cache.runtime_cache_file import (
    FileGeneration,
    OnlyInPlaceError,
    RuntimeCacheFile,
    accept_offer,
)
from torchtrt_cache.trust import NotTrustedError, resolve_trusted
from torchtrt_cache.unlocked_logger import unlocked_logger

_LOGGER = unlocked_logger("runtime_cache_handle")

# How often a save merges because others saved meanwhile.
_MAX_MERGES = 8

# After these, only growth means new kernels to a checkpoint.
_CHANGES_WITHOUT_GROWTH = 10

# With bytes that TensorRT-RTX rejects. The first one may be due to damage.
_REPLACEMENTS_BY_OTHERS = 2

_LARGE_FILE = 1 << 30  # bytes

_CHECKPOINTS_VARIABLE = "TORCHTRT_RUNTIME_CACHE_CHECKPOINTS"

# Path, bytes, and the files that contain them.
State = tuple[str, torch.Tensor, list[str]]


class RuntimeCacheHandle:
    """The kernels of a runtime cache, and the files that they are loaded from and saved to.

    Any number of engines of the Python runtime may share one.

    A handle is pending at first: it has serialized bytes, or none. The first engine that uses it
    makes it live (`ensure_materialized`). A live handle has one `tensorrt_rtx.IRuntimeCache` per
    device, into which TensorRT-RTX puts each kernel that it compiles.

    If a path is a directory, it means the file in it for one kind of machine
    (`torchtrt_cache.kinds`): the kind of a live cache's device or, for a pending handle, of the
    current CUDA device. A handle that is live on devices of several kinds has one file per kind.
    The first save creates a directory whose path ends in a separator, if its parent exists.

    A save never removes kernels that other processes saved to the file, with two exceptions, each
    logged as a warning: bytes that the caller gave to a pending handle (`deserialize`) replace the
    file, and so do the kernels of a live cache if TensorRT-RTX can't merge the two. If another
    process replaces this handle's save with bytes that TensorRT-RTX rejects, the next save
    overwrites them. If that happens again, the handle logs a warning and no longer overwrites such
    bytes in that file.

    While its process runs, a live cache that saves itself is saved by a background thread
    (`CheckpointThread`) after calls that may have compiled kernels. Such a checkpoint is a save
    that writes no file in place. The environment variable TORCHTRT_RUNTIME_CACHE_CHECKPOINTS=0
    turns checkpoints off.

    A process may fork at any moment. In the child, handles that were live are pending and empty,
    and `autosave` is False for all handles. The parent's runtime caches are neither used nor
    destroyed there.

    Errors are RuntimeErrors. Errors of the disk name the path, the operation and the reason. A load
    or save that raises leaves the handle unchanged. TensorRT-RTX rejects bytes that are damaged or
    come from another version, GPU or driver. That causes a warning with their file and size, never
    an error.

    Thread safety: any method may be called from any thread, also while engines run. `load`, `save`
    and `deserialize` of one handle run one at a time.

    Args:
        path: The default of `load` and `save`, which need an argument if it is empty. The
            constructor does not touch the disk.

    Attributes:
        lock_timeout: Seconds to wait for the lock of a file. At the end of the process, all waits
            end at `exit_deadline()`.
    """

    def __init__(self, path: str) -> None:
        self.lock_timeout = 10.0
        self._path = path
        self._autosave = True
        self._checkpoints = True
        self._has_lazy_engines = False  # stays True after the last of them
        self._was_directory = False  # the path was one at an earlier use
        # Pending, and never written to, or live.
        self._contents: torch.Tensor | list[LiveRuntimeCache] = _allocate(0)
        self._stores: dict[str, _Store] = {}  # by path
        self._start_over()
        start_over_in_children(self)

    def _start_over(self) -> None:
        # Both locks are reentrant, because a signal handler or log handler may use the handle
        # anywhere. Both are held only within deferred_calls(), so that nothing is logged under
        # them: a thread that holds a log handler's lock may wait for these.
        # Held by whatever changes the contents, and for disk work; taken before _state_lock.
        self._disk_lock = threading.RLock()
        self._is_at_disk = False  # guarded by _disk_lock
        # Guarded by _disk_lock too.
        # Of failed checkpoints since the last success.
        self._reported_causes: set[str] = set()
        self._has_warned_of_unknown_kind = False
        # Never held for disk work; guards the rest.
        self._state_lock = threading.RLock()
        self._statistics = RuntimeCacheStatistics()  # without the sizes
        self._size_at_load = 0  # bytes, of a live cache

    def start_over_in_child(self) -> None:
        """Called in a child of fork(): see forks.py."""
        # If the lock is held, a thread of the parent was changing the handle.
        is_whole = self._state_lock.acquire(blocking=False)
        self._start_over()
        self._autosave = False
        if not is_whole or not isinstance(self._contents, torch.Tensor):
            leak(self._contents)
            self._contents = _allocate(0)
            self._stores = {}

    @property
    def path(self) -> str:
        return self._path

    @property
    def autosave(self) -> bool:
        """Whether the cache saves itself, at its end and by checkpoints. True by default.

        At its end, its owner saves it (`torch_tensorrt.runtime.RuntimeCache`).
        """
        return self._autosave

    @autosave.setter
    def autosave(self, autosave: bool) -> None:
        self._autosave = autosave
        self._mark()

    @property
    def checkpoints(self) -> bool:
        """Whether a cache that saves itself has checkpoints. True by default."""
        return self._checkpoints

    @checkpoints.setter
    def checkpoints(self, checkpoints: bool) -> None:
        self._checkpoints = checkpoints
        self._mark()

    def _mark(self) -> None:
        """Schedules a checkpoint for kernels compiled before the cache had checkpoints."""
        with self.compiling(self._has_lazy_engines):
            pass

    def _is_checkpointed(self) -> bool:
        return (
            self._saves_itself()
            and self._checkpoints
            and _are_checkpoints_on(os.environ.get(_CHECKPOINTS_VARIABLE))
        )

    def _saves_itself(self) -> bool:
        is_live = not isinstance(self._contents, torch.Tensor)
        return is_live and self._autosave and self._path != ""

    @contextmanager
    def compiling(self, specializes_lazily: bool) -> Iterator[None]:
        """Marks a block that may compile kernels into the cache.

        Args:
            specializes_lazily: Whether they may also be compiled at any later time.
        """
        if specializes_lazily:
            self._has_lazy_engines = True
        is_marked = self._is_checkpointed()
        if is_marked:
            checkpoint_thread.begin(self, specializes_lazily)
        elif self._saves_itself():
            # For the save at the end of the process, when the thread can no longer be started.
            checkpoint_thread.start()
        try:
            yield
        finally:
            if is_marked:
                checkpoint_thread.end(self)

    @property
    def state(self) -> State:
        """The state from which `from_state` makes a pending copy."""
        place = self._place_of(self._path)
        with self._locked_state():
            # The files of which a pending copy must not overwrite newer versions, because this
            # cache can still merge with them.
            files = {path for path, store in self._stores.items() if store.is_known()}
            files |= self._lives_by_file(place).keys() - {""}
            return self._path, self.serialize(), sorted(files)

    @classmethod
    def from_state(cls, state: State) -> RuntimeCacheHandle:
        path, data, files = state
        handle = cls(path)
        handle._take(_copy(data), files)
        return handle

    def serialize(self) -> torch.Tensor:
        """Returns the bytes as a uint8 tensor [size in bytes] on the CPU, empty if there are none.

        A pending handle's tensor shares the handle's memory until somebody writes to the tensor,
        which copies it. A live handle serializes its caches each time, and merges the kernels of
        its devices. If the path is a directory, it merges those of the first device's kind.
        """
        with self._locked_state():
            if isinstance(self._contents, torch.Tensor):
                clone: torch.Tensor = torch.ops.aten._lazy_clone(self._contents)
                return clone
            lives = self._contents
            if self._was_directory:
                lives = [live for live in lives if live.kind == lives[0].kind]
            return tensor_of(self._merged_bytes(lives))

    def deserialize(self, data: torch.Tensor) -> None:
        """Takes a copy of `data`.

        The copy replaces a pending handle's bytes. A live cache deserializes it, which adds to the
        contents or replaces them: TensorRT-RTX does not document which. An empty tensor clears a
        pending or a live handle.

        Args:
            data: A uint8 tensor [size in bytes] on the CPU.

        Raises:
            RuntimeError: It is another tensor, or a live cache could not be cleared.
        """
        copied = _copy(data)
        with (
            self._disk_work("change", self._path, self._waits()),
            self._locked_state(),
        ):
            for store in self._stores.values():
                store.largest_saved = 0  # an empty tensor clears the cache
            if isinstance(self._contents, torch.Tensor):
                self._take(copied, [])
                return
            # The contents may no longer have the files' kernels.
            self._forget_stores()
            for live in self._contents:
                if copied.numel() > 0:
                    self._feed(live, memory_of(copied), "")
                elif not live.cache.reset():
                    raise RuntimeError(
                        f"TensorRT-RTX could not clear the runtime cache '{self._path}'"
                    )

    def merged(
        self, theirs: torch.Tensor, ours: torch.Tensor, file_name: str
    ) -> torch.Tensor:
        """Merges two serialized caches of one kind of machine, and returns the kernels of both.

        If `theirs` has all of them, the result has the size of `theirs`. The contents of the handle
        are neither used nor changed. Never waits for a file lock, a load or a save.

        Args:
            theirs: A uint8 tensor [size in bytes] on the CPU.
            ours: A uint8 tensor [size in bytes] on the CPU.
            file_name: `RuntimeCacheKind.file_name()` of the kind.

        Raises:
            RuntimeError: The handle has no live cache of this kind, the two caches can't be merged,
                or one of them is another kind of tensor.
        """
        first, second = _contiguous_bytes(theirs), _contiguous_bytes(ours)
        live = self._live_of_kind(file_name)
        if live is None:
            raise RuntimeError(
                f"The runtime cache '{self._path}' is not in use on a device of the kind "
                f"'{file_name}'"
            )
        merged = live.merge(memory_of(first), memory_of(second))
        if merged.data is None:
            raise RuntimeError(
                f"Can't merge runtime caches of {first.numel()} and {second.numel()} bytes of the "
                f"kind '{file_name}': {merged.reason_against}"
            )
        return tensor_of(merged.data)

    def _live_of_kind(self, file_name: str) -> LiveRuntimeCache | None:
        """Returns None if the handle is not live on a device of that kind."""
        with self._locked_state():
            if isinstance(self._contents, torch.Tensor):
                return None
            for live in self._contents:
                if live.kind is not None and live.kind.file_name() == file_name:
                    return live
            return None

    def has_cache(self) -> bool:
        """Whether there are bytes or a live cache."""
        with self._locked_state():
            contents = self._contents
            return not isinstance(contents, torch.Tensor) or contents.numel() > 0

    def load(self, path: str = "") -> int:
        """Takes the bytes of a file, like `deserialize`, and returns their number.

        Returns 0 and changes nothing if the file is missing or empty, or if a live cache rejects
        it. From a directory, loads the first non-empty file of `files_to_load`. If the kind of
        machine is unknown, logs a warning once and returns 0.

        Args:
            path: The file or directory. An empty one means the handle's own path.
        """
        source = self._path_or_default(path)
        waits = self._waits()
        with self._disk_work("load", source, waits):
            return self._load(self._place_of(source), waits)

    def _load(self, place: _Place, waits: LockWaits) -> int:
        """Requires _disk_work."""
        with self._locked_state():
            groups = list(self._lives_by_file(place).values())
        if not groups:
            return self._load_pending(place, waits)
        # All of them first, so that an error leaves the handle unchanged.
        read = [(lives, self._read(place, lives[0].kind, waits)) for lives in groups]
        with self._locked_state():
            accepted = [
                loaded
                for lives, loaded in read
                if loaded is not None and self._feed_all(lives, loaded)
            ]
            if accepted:  # the kernels of other files may have been replaced
                self._forget_stores()
            for loaded in accepted:
                self._note_loaded(loaded)
            size = sum(loaded.generation.size for loaded in accepted)
            self._size_at_load = max(self._size_at_load, size)
        return size

    def _load_pending(self, place: _Place, waits: LockWaits) -> int:
        """Requires _disk_work."""
        try:
            kind = _current_kind() if place.is_directory else None
        except UnknownKindError as error:
            self._warn_of_unknown_kind(place.path, str(error))
            return 0
        loaded = self._read(place, kind, waits)
        if loaded is None:
            return 0
        self._take_loaded(place, kind, loaded)
        return loaded.generation.size

    def _read(
        self, place: _Place, kind: RuntimeCacheKind | None, waits: LockWaits
    ) -> _Loaded | None:
        """Reads the file that `place` has for `kind`, which only a directory needs.

        Requires _disk_work.
        """
        data = _allocate(0)

        def allocate(size: int) -> memoryview:
            nonlocal data
            data = _allocate(size)
            return memory_of(data)

        files = [place.path]
        if place.is_directory:
            files = [] if kind is None else files_to_load(place.path, kind)
        with _RecordFunctionFast("RuntimeCache:load"):
            for file in files:
                disk = RuntimeCacheFile(file, waits).read(allocate)
                if disk is not None:
                    return _Loaded(file, data, disk.generation)
        return None

    def _take_loaded(
        self, place: _Place, kind: RuntimeCacheKind | None, loaded: _Loaded
    ) -> None:
        """Replaces the bytes of a pending handle with what `_read` returned."""
        with self._locked_state():
            # Whatever others save to the kind's own file meanwhile is newer.
            own = {file_in(place.path, kind)} if kind and place.is_directory else set()
            self._take(loaded.data, sorted({loaded.file} | own))
            self._note_loaded(loaded)

    def _note_loaded(self, loaded: _Loaded) -> None:
        """Requires _state_lock."""
        size = loaded.generation.size
        self._store(loaded.file).contained = loaded.generation
        self._store(loaded.file).size = size
        self._warn_of_size(loaded.file, size)
        self._statistics = replace(
            self._statistics,
            bytes_loaded=self._statistics.bytes_loaded + size,
            loaded_from=loaded.file,
        )

    def _warn_of_size(self, file: str, size: int) -> None:
        """Logs a warning, once per file, if the file is large. Requires _state_lock."""
        store = self._store(file)
        if size > _LARGE_FILE and not store.has_warned_of_size:
            store.has_warned_of_size = True
            _LOGGER.warning(
                "The runtime cache '%s' has grown to %d bytes. TensorRT-RTX never removes kernels; "
                "remove the file to start anew",
                file,
                size,
            )

    def _warn_of_unknown_kind(self, path: str, reason: str) -> None:
        """Logs the warning only once. Requires _disk_work."""
        if not self._has_warned_of_unknown_kind:
            self._has_warned_of_unknown_kind = True
            text = _unknown_kind("load", path, reason)
            _LOGGER.warning("%s. Kernels will be compiled anew", text)

    def save(self, path: str = "") -> int:
        """Writes the bytes to a file and returns the number of bytes written.

        Returns 0 if there are no kernels or the file already has them all.

        A live cache writes the file's kernels together with its own. If it can't, because
        TensorRT-RTX rejects the file's bytes or replaces a cache's contents when it deserializes,
        it writes only its own and logs a warning. If other processes save meanwhile, it merges
        again, at most 8 times, and then raises. Savers that merge take turns
        (`RuntimeCacheFile.wait_for_turn`), so a second merge is needed only if a process that
        already has all of the file's kernels saves in between.

        A pending handle can't merge. Bytes that it loaded from the file, or saved to it, never
        replace a newer version. Bytes that the caller gave it replace the file, with a warning.

        Args:
            path: The file or directory. An empty one means the handle's own path.

        Raises:
            RuntimeError: The path is a directory and the kind of machine is unknown, or as for the
                class. If one of several files can't be saved, the others are still saved.
        """
        return self._save_until(self._path_or_default(path), math.inf)

    def save_within(self, seconds: float) -> int:
        """Like `save` to the handle's path, but runs on the checkpoint thread.

        Waits for locks take at most half of the time, so that a caller with many caches has time
        for the others.

        Raises:
            RuntimeError: It takes longer. The save may still succeed later. Or as for `save`.
        """
        target = self._path_or_default("")
        now = time.monotonic()
        save = functools.partial(self._save_until, target, now + seconds / 2)
        try:
            return checkpoint_thread.run(save, now + seconds)
        except TimeoutError:
            milliseconds = round(seconds * 1000)
            raise self._not_saved(f"not done within {milliseconds} ms") from None

    def _save_until(self, target: str, deadline: float) -> int:
        """Like `save`. All waits for locks end by the deadline."""
        waits = self._waits(deadline)
        with (
            self._disk_work("save", target, waits),
            _RecordFunctionFast("RuntimeCache:save"),
        ):
            return self._save(self._place_of(target), waits) or 0

    def checkpoint(self, waits: LockWaits) -> Found:
        """Saves new kernels to the path, for the checkpoint thread. Raises nothing.

        Does not wait for locks once `waits.stop` is set. An error is then not a failure.
        """
        waits.timeout = self.lock_timeout
        with deferred_calls():
            lock = self._disk_lock
            # The end of the process saves everything.
            if not self._is_checkpointed() or exit_deadline() < math.inf:
                return Found.NOTHING
            if not lock.acquire(blocking=False):
                return Found.LATER
            try:
                with (
                    self._disk_work("save", self._path, waits),
                    _RecordFunctionFast("RuntimeCache:save"),
                ):
                    written = self._save(
                        self._place_of(self._path), waits, is_checkpoint=True
                    )
            except Exception as error:
                if waits.stop is not None and waits.stop.is_set():
                    return Found.LATER
                self._report_failure(error)
                return Found.FAILED
            else:
                self._reported_causes.clear()
                return Found.NOTHING if written is None else Found.NEW
            finally:
                lock.release()

    def _report_failure(self, error: Exception) -> None:
        """Logs a warning once per cause. Requires _disk_lock."""
        is_ours = isinstance(error, RuntimeError)  # it says what failed
        message = str(error if is_ours else self._not_saved(repr(error)))
        # The cause is the end of the message, because names of temporary files differ each time.
        cause = message.rpartition(": ")[2]
        level = logging.INFO if cause in self._reported_causes else logging.WARNING
        self._reported_causes.add(cause)
        _LOGGER.log(level, "%s", message)

    def _not_saved(self, reason: str) -> RuntimeError:
        return RuntimeError(f"Can't save the runtime cache '{self._path}': {reason}")

    def statistics(self) -> RuntimeCacheStatistics:
        place = self._place_of(self._path)
        with self._locked_state():
            if isinstance(self._contents, torch.Tensor):
                return replace(self._statistics, size=self._contents.numel())
            size = 0
            for lives in self._lives_by_file(place).values():
                data = self._merged_bytes(lives)
                size += 0 if lives[0].is_without_kernels(data) else len(data)
            added = max(size - self._size_at_load, 0)
            return replace(self._statistics, size=size, size_added=added)

    def _save(
        self, place: _Place, waits: LockWaits, *, is_checkpoint: bool = False
    ) -> int | None:
        """Returns the number of bytes written, or None if there was nothing to write.

        Requires _disk_work.
        """
        with self._locked_state():
            groups = self._lives_by_file(place)
        groups = groups or {self._file_of_pending(place): []}
        written = None
        failure = None
        for file, lives in groups.items():
            if not file:
                _LOGGER.info(
                    "Kernels of another kind of machine, or of an unknown one, are not saved to "
                    "'%s'",
                    place.path,
                )
                continue
            try:
                more = self._save_file(place, file, lives, waits, is_checkpoint)
            except Exception as error:
                if failure is not None:  # the first one is raised after the other saves
                    _LOGGER.warning("%s", str(error))
                failure = failure or error
                continue
            if more is not None:
                written = (written or 0) + more
        if failure is not None:
            raise failure
        return written

    def _save_file(
        self,
        place: _Place,
        file: str,
        lives: Sequence[LiveRuntimeCache],
        waits: LockWaits,
        is_checkpoint: bool,
    ) -> int | None:
        """Like `_save`, for one file and the live caches that have it at `place`.

        A pending handle has no live caches.
        """
        live = lives[0] if lives else None
        with self._locked_state():
            store = self._store(file)
            if is_checkpoint and store.is_only_in_place:
                return None
            ours = self._merged_bytes(lives) if lives else self._pending_bytes()
        digest = digest_of(ours)
        try:
            file_size = Path(file).stat().st_size
        except OSError:
            file_size = 0
        # Merges only make a file grow. A file that is smaller than before was removed and created
        # again without our kernels.
        is_reset = file_size == 0 or (live is not None and file_size < store.size)
        # Returns before the lock is taken, because that would fail in a read-only directory.
        if digest == store.digest and not is_reset:
            _LOGGER.info("There are no new kernels for the runtime cache '%s'", file)
            return None
        # A write would create a file without kernels, or overwrite one that has kernels.
        if len(ours) == 0 or (live is not None and live.is_without_kernels(ours)):
            _LOGGER.info("There are no kernels for the runtime cache '%s'", file)
            return None
        has_grown = len(ours) > store.largest_saved or is_reset
        has_settled = store.changes_without_growth >= _CHANGES_WITHOUT_GROWTH
        if is_checkpoint and has_settled and not has_grown:
            return None
        if place.is_directory:
            _make_directory(place.path)
        try:
            written = self._write(
                RuntimeCacheFile(file, waits), file, live, ours, is_checkpoint
            )
        except OnlyInPlaceError:
            with self._locked_state():
                store.is_only_in_place = True
            raise
        if written is None:
            return None
        with self._locked_state():
            store.digest = digest
            if is_checkpoint:
                store.changes_without_growth = (
                    0 if has_grown else store.changes_without_growth + 1
                )
                store.largest_saved = max(store.largest_saved, len(ours))
            if written > 0:
                before = self._statistics
                self._statistics = replace(
                    before,
                    saves=before.saves + (not is_checkpoint),
                    checkpoints=before.checkpoints + is_checkpoint,
                    bytes_written=before.bytes_written + written,
                    last_save_time=time.time(),
                )
        return written

    def _write(
        self,
        file: RuntimeCacheFile,
        target: str,
        live: LiveRuntimeCache | None,
        ours: memoryview,
        is_checkpoint: bool,
    ) -> int | None:
        """Writes `ours`. If `live` is not None, it merges them with the bytes in the file.

        Returns None if the file is left to another kind of machine. Requires _disk_work.
        """
        with self._locked_state():
            expected = self._store(target).contained
        merged = Merged(None)
        others = 0  # bytes that others saved
        offers: list[str] = []
        has_turn = False
        with ExitStack() as turn:
            for merges in range(_MAX_MERGES + 1):
                merges_others = live is not None and not has_turn
                if merges_others and (merges > 0 or file.is_turn_taken()):
                    is_saved, offers = turn.enter_context(file.wait_for_turn(ours))
                    has_turn = True
                    if is_saved:
                        _LOGGER.info(
                            "Another process saved the kernels of this one to the runtime cache "
                            "'%s'",
                            target,
                        )
                        return 0
                if merges > 0:
                    merged = Merged(None)  # frees the last one
                    disk = file.read()
                    expected = None if disk is None else disk.generation
                    others = 0 if disk is None else len(disk.data)
                    if disk is not None and live is not None:
                        _LOGGER.info(
                            "Merging with the %d bytes that others saved to the runtime cache "
                            "'%s'",
                            others,
                            target,
                        )
                        merged = live.merge(disk.data, ours, offers)
                        self._count("merges")
                        if merged.is_disk_rejected and not self._may_replace_rejected(
                            target, others
                        ):
                            return None
                        if merged.adds_nothing:
                            with self._locked_state():
                                self._store(target).size = others
                            _accept(merged.offers)
                            _LOGGER.info(
                                "The runtime cache '%s' has all kernels already", target
                            )
                            return 0
                    if disk is not None and merged.data is None:
                        # With it, a push would believe that the file still has its old kernels.
                        remove_record(target)
                    del disk
                data = ours if merged.data is None else merged.data
                replaced = file.replace(data, expected, not is_checkpoint)
                del data
                if replaced is not None:
                    break
                self._count("conflicts")
            else:
                raise RuntimeError(
                    f"Can't save the runtime cache '{target}': others saved to it {_MAX_MERGES} "
                    "times while this process merged. The file is intact"
                )
            _accept(merged.offers)
        with self._locked_state():
            store = self._store(target)
            # The kernels of others are on disk and not in our contents.
            store.contained = replaced.generation if merged.data is None else None
            store.has_been_saved = True
            store.size = replaced.generation.size
            self._warn_of_size(target, replaced.generation.size)
            if not replaced.is_written:
                return 0
            store.is_only_in_place = replaced.in_place != ""
            written = replaced.generation.size
            if replaced.in_place and not store.has_warned_of_writing_in_place:
                store.has_warned_of_writing_in_place = True
                _LOGGER.warning(
                    "The runtime cache '%s' is written in place, because it can't be replaced: %s. "
                    "A crash during a write can tear it",
                    target,
                    replaced.in_place,
                )
            if others > 0 and live is None:
                _LOGGER.warning(
                    "Saving %d bytes to the runtime cache '%s' replaced %d bytes that had not been "
                    "read from it",
                    written,
                    target,
                    others,
                )
            elif others > 0 and merged.is_disk_rejected:
                self._report_rejection(
                    others,
                    target,
                    "They were replaced by the kernels that this process compiled",
                )
            elif others > 0 and merged.data is None:
                _LOGGER.warning(
                    "The %d bytes that others saved to the runtime cache '%s' could not be merged "
                    "and were replaced by %d bytes of this process: %s",
                    others,
                    target,
                    written,
                    merged.reason_against,
                )
        return written

    def _may_replace_rejected(self, file: str, size: int) -> bool:
        """Returns True if the save may overwrite bytes that TensorRT-RTX rejects.

        The first time it may not, logs a warning. Requires _disk_work.
        """
        with self._locked_state():
            store = self._store(file)
            is_replaced, store.has_been_saved = store.has_been_saved, False
            store.replacements_by_others += is_replaced
            may_replace = store.replacements_by_others < _REPLACEMENTS_BY_OTHERS
            if not may_replace:
                limit = _REPLACEMENTS_BY_OTHERS
                is_news = is_replaced and store.replacements_by_others == limit
                message = (
                    f"The runtime cache '{file}' was replaced again by {size} bytes that "
                    "TensorRT-RTX rejects, so this process no longer overwrites it: two kinds of "
                    "machine (GPU, driver or TensorRT-RTX version) share the path. To serve both, "
                    "use a directory as the path"
                )
                self._count_rejection(message, is_news)
            return may_replace

    def ensure_materialized(
        self, config: Any, device: torch.device, kind: RuntimeCacheKind | None
    ) -> Any:
        """Makes the handle live on a device, with a cache that `config` creates.

        Changes nothing if the handle is live there already. A handle without bytes loads its path
        first. If that fails, it logs a warning and starts with an empty cache. A further device
        starts with the kernels of the other devices or, if it is of another kind and the path is a
        directory, with the file of its own kind.

        Args:
            config: A `tensorrt_rtx.IRuntimeConfig`.
            device: The device of the engine.
            kind: The kind of the device, or None if it is unknown. Without a kind, a path that is a
                directory is neither loaded nor saved.

        Returns:
            The `tensorrt_rtx.IRuntimeCache`, which is the same for all callers. It must outlive the
            last use of each config that it is attached to, and of each context made with such a
            config.

        Raises:
            RuntimeError: TensorRT-RTX can't create a cache. The handle is unchanged.
        """
        if (cache := self._live_cache(device)) is not None:
            return cache
        waits = self._waits()
        with self._disk_work("load", self._path, waits):
            if (cache := self._live_cache(device)) is not None:
                return cache
            live = LiveRuntimeCache.create(config, device, kind)
            if live is None:
                raise RuntimeError(
                    f"TensorRT-RTX could not create a runtime cache for '{self._path}'"
                )
            place = self._place_of(self._path)
            if place.is_directory and kind is None:
                self._warn_of_unknown_kind(
                    self._path, "CUDA does not identify its GPU or driver"
                )
            with self._locked_state():
                contents = self._contents
            if isinstance(contents, torch.Tensor):
                self._go_live(place, live, waits)
            else:
                siblings = [
                    c for c in contents if not place.is_directory or c.kind == kind
                ]
                self._add_live(place, live, siblings, waits)
            return live.cache

    def _go_live(self, place: _Place, live: LiveRuntimeCache, waits: LockWaits) -> None:
        """Makes a pending handle live. Requires _disk_work."""
        with self._locked_state():
            if (
                place.is_directory
                and live.kind is not None
                and self._has_bytes_of_other_kinds(file_in(place.path, live.kind))
            ):
                self._take(_allocate(0), [])
        if not self.has_cache():
            loaded = self._read_or_warn(place, live.kind, waits)
            if loaded is not None:
                self._take_loaded(place, live.kind, loaded)
        with self._locked_state():
            is_accepted = self._start_with(live, self._pending_bytes())
            self._contents = [live]
            for store in self._stores.values():
                # A pending copy must not overwrite its original's files. Now it can merge with
                # them.
                if not is_accepted or store.contained is None:
                    store.contained = store.digest = None

    def _add_live(
        self,
        place: _Place,
        live: LiveRuntimeCache,
        siblings: Sequence[LiveRuntimeCache],
        waits: LockWaits,
    ) -> None:
        """Adds a device to a live handle. `siblings` are the live caches with the same file.

        Requires _disk_work.
        """
        loaded = None if siblings else self._read_or_warn(place, live.kind, waits)
        with self._locked_state():
            assert not isinstance(self._contents, torch.Tensor)
            self._contents.append(live)
            if siblings:
                self._start_with(live, self._merged_bytes(siblings))
            elif loaded is not None and self._feed_all([live], loaded):
                self._note_loaded(loaded)
                self._size_at_load += loaded.generation.size

    def _start_with(self, live: LiveRuntimeCache, data: memoryview) -> bool:
        """Gives the bytes of the handle to a new live cache. Returns False if it rejects them.

        Requires _state_lock.
        """
        stores = self._stores.items()
        sources = [file for file, store in stores if store.contained is not None]
        sources += [file for file, store in stores if store.digest is not None]
        source = sources[0] if sources else ""
        if len(data) > 0 and not self._feed(live, data, source):
            return False
        self._size_at_load = max(self._size_at_load, len(data))
        return True

    def _read_or_warn(
        self, place: _Place, kind: RuntimeCacheKind | None, waits: LockWaits
    ) -> _Loaded | None:
        """Like `_read`, but returns None if the path is empty.

        If it fails, logs a warning and returns None. Requires _disk_work.
        """
        if not place.path:
            return None
        try:
            return self._read(place, kind, waits)
        except RuntimeError as error:
            _LOGGER.warning("%s. Kernels will be compiled anew", str(error))
            return None

    def _live_cache(self, device: torch.device) -> Any:
        """Returns None if the handle is not live on `device`."""
        with self._locked_state():
            if not isinstance(self._contents, torch.Tensor):
                for live in self._contents:
                    if live.device == device:
                        return live.cache
        return None

    def _path_or_default(self, path: str) -> str:
        if not path and not self._path:
            raise RuntimeError(
                "This runtime cache has no path of its own, so load() and save() need one as their "
                "argument"
            )
        return path or self._path

    def _count(self, statistic: str, added: float = 1) -> None:
        """Adds to one of the statistics."""
        with self._locked_state():
            total = getattr(self._statistics, statistic) + added
            self._statistics = replace(self._statistics, **{statistic: total})

    def _waits(self, deadline: float = math.inf) -> LockWaits:
        return LockWaits(self.lock_timeout, min(deadline, exit_deadline()))

    @contextmanager
    def _disk_work(self, operation: str, path: str, waits: LockWaits) -> Iterator[None]:
        """Holds the lock for disk work in a block. `waits` limits all waits of the block."""
        with deferred_calls(), self._locked_disk(operation, path, waits.deadline):
            if self._is_at_disk:  # in a finalizer, a signal handler or a log handler
                raise RuntimeError(
                    f"A load or save of the runtime cache '{path}' can't start during "
                    "another one on the same thread"
                )
            self._is_at_disk = True
            try:
                yield
            finally:
                self._is_at_disk = False
                self._count("lock_wait", waits.waited)

    @contextmanager
    def _locked_disk(
        self, operation: str, path: str, deadline: float
    ) -> Iterator[None]:
        lock = self._disk_lock
        longest = min(max(deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
        if not lock.acquire(timeout=longest):
            raise RuntimeError(
                f"Can't {operation} the runtime cache '{path}': another load or save of it "
                f"went on for {round(longest * 1000)} ms"
            )
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _locked_state(self) -> Iterator[None]:
        with deferred_calls(), self._state_lock:
            yield

    def _place_of(self, path: str) -> _Place:
        """Returns what a path means.

        A path that was a directory at an earlier use stays one. Otherwise, after somebody removed
        the directory, a save would create a file there that all kinds share.
        """
        is_one = is_directory(path)
        if path != self._path:
            return _Place(path, is_one)
        self._was_directory |= is_one
        return _Place(path, self._was_directory)

    def _lives_by_file(self, place: _Place) -> dict[str, list[LiveRuntimeCache]]:
        """Returns the live caches by the file that each has at `place`.

        The file is "" for a cache that has none, because the path is empty or the kind is unknown.
        A pending handle has no live caches. Requires _state_lock.
        """
        if isinstance(self._contents, torch.Tensor):
            return {}
        if not place.is_directory:
            return {place.path: list(self._contents)}
        lives: dict[str, list[LiveRuntimeCache]] = {}
        for live in self._contents:
            file = "" if live.kind is None else file_in(place.path, live.kind)
            lives.setdefault(file, []).append(live)
        return lives

    def _file_of_pending(self, place: _Place) -> str:
        """Returns the file that `place` has for a pending handle.

        Returns "" if the bytes are those of other kinds there.
        """
        if not place.is_directory or not self.has_cache():
            return place.path
        try:
            file = file_in(place.path, _current_kind())
        except UnknownKindError as error:
            raise RuntimeError(_unknown_kind("save", place.path, str(error))) from error
        with self._locked_state():
            return "" if self._has_bytes_of_other_kinds(file) else file

    def _has_bytes_of_other_kinds(self, file: str) -> bool:
        """Whether the bytes of a pending handle are from other files beside `file`.

        Returns False if they are also from `file`. Requires _state_lock.
        """
        known = [
            Path(known) for known, store in self._stores.items() if store.is_known()
        ]
        is_beside = any(other.parent == Path(file).parent for other in known)
        return is_beside and Path(file) not in known

    def _store(self, path: str) -> _Store:
        """Requires _state_lock."""
        return self._stores.setdefault(path, _Store())

    def _take(self, data: torch.Tensor, files: list[str]) -> None:
        """Replaces the bytes of a pending handle with `data`, which are those of `files`.

        Requires _state_lock.
        """
        self._forget_stores()
        for file in files:
            self._store(file).digest = digest_of(memory_of(data))
        self._contents = data

    def _forget_stores(self) -> None:
        """Requires _state_lock."""
        for store in self._stores.values():
            store.contained = None
            store.digest = None

    def _pending_bytes(self) -> memoryview:
        """Returns the memory of a pending handle. Requires _state_lock."""
        assert isinstance(self._contents, torch.Tensor)
        return memory_of(self._contents)

    def _merged_bytes(self, lives: Sequence[LiveRuntimeCache]) -> memoryview:
        """Returns the merged bytes of `lives`. Requires _state_lock."""
        first, *others = lives
        data = self._serialize(first)
        for live in others:
            more = self._serialize(live)
            if digest_of(more) == digest_of(data):
                continue
            merged = first.merge(more, data)
            if merged.data is not None:
                data = merged.data
            else:
                _LOGGER.warning(
                    "The runtime cache '%s' keeps no kernels of %s, because they can't be merged "
                    "with those of %s: %s",
                    self._path,
                    live.device,
                    first.device,
                    merged.reason_against,
                )
        return data

    def _serialize(self, live: LiveRuntimeCache) -> memoryview:
        """Requires _state_lock."""
        data = live.serialize()
        if data is None:
            raise RuntimeError(
                f"TensorRT-RTX could not serialize the runtime cache '{self._path}'"
            )
        return data

    def _feed(self, live: LiveRuntimeCache, data: memoryview, source: str) -> bool:
        """Gives bytes to a live cache. If it rejects them, logs a warning and returns False.

        `source` is the file that they are from, or "". Requires _state_lock.
        """
        is_accepted = live.deserialize(data)
        if not is_accepted:
            self._report_rejection(
                len(data), source, "They are not used: kernels will be compiled anew"
            )
        return is_accepted

    def _feed_all(self, lives: Sequence[LiveRuntimeCache], loaded: _Loaded) -> bool:
        """Gives the bytes to each of `lives`. Returns True if any of them accepts them.

        Requires _state_lock.
        """
        data = memory_of(loaded.data)
        accepted = [self._feed(live, data, loaded.file) for live in lives]
        return any(accepted)

    def _report_rejection(self, size: int, source: str, consequence: str) -> None:
        """Logs a warning once per file. Requires _state_lock."""
        store = self._store(source) if source else _Store()
        is_news = not store.has_warned_of_rejection
        store.has_warned_of_rejection = True
        whose = (
            f"the runtime cache '{source}'" if source else "a runtime cache given to it"
        )
        message = (
            f"TensorRT-RTX rejected the {size} bytes of {whose}: they are damaged, or come from "
            "another TensorRT-RTX version, GPU, operating system or CUDA driver. "
            f"{consequence}"
        )
        self._count_rejection(message, is_news)

    def _count_rejection(self, message: str, is_news: bool) -> None:
        """Requires _state_lock."""
        rejections = self._statistics.rejections + 1
        self._statistics = replace(
            self._statistics, rejections=rejections, last_rejection=message
        )
        _LOGGER.log(logging.WARNING if is_news else logging.INFO, "%s", message)


@functools.cache
def _are_checkpoints_on(value: str | None) -> bool:
    """Whether the environment variable's value turns them on. Warns once of an unknown value."""
    if value not in (None, "", "0", "1"):
        _LOGGER.warning(
            "%s is '%s', expected 0 or 1; checkpoints are on",
            _CHECKPOINTS_VARIABLE,
            value,
        )
    return value != "0"


@dataclass
class _Store:
    """What is known about a file."""

    # The generation whose kernels are all in our contents.
    contained: FileGeneration | None = None
    digest: bytes | None = None  # of those contents of ours that the file has
    size: int = 0  # bytes of the file when it last had all of ours
    has_been_saved: bool = False  # by this handle, since others last replaced it
    replacements_by_others: int = 0  # with bytes that TensorRT-RTX rejects
    has_warned_of_rejection: bool = False
    has_warned_of_writing_in_place: bool = False
    has_warned_of_size: bool = False
    # Found by the last write, or by a checkpoint, which writes a whole temporary file to find out.
    is_only_in_place: bool = False
    # For checkpoints:
    largest_saved: int = 0  # most bytes saved by one
    changes_without_growth: int = 0  # in a row

    def is_known(self) -> bool:
        return self.contained is not None or self.digest is not None


class _Place(NamedTuple):
    path: str
    is_directory: bool


class _Loaded(NamedTuple):
    file: str
    data: torch.Tensor
    generation: FileGeneration


def _make_directory(path: str) -> None:
    """Creates the last directory of the path if it is missing and the others are trusted."""
    if os.path.isdir(path):  # noqa: PTH112  the lines below report its errors
        return
    reason = ""
    try:
        resolve_trusted(path.rstrip("/"))
    except NotTrustedError as error:
        reason = str(error)
    except OSError as error:
        reason = str(error.strerror)
    if not reason:
        try:
            with suppress(FileExistsError):
                Path(path).mkdir(0o775)
        except OSError as error:
            reason = f"create '{path}': {error.strerror}"
    if reason:
        raise RuntimeError(f"Can't save the runtime cache '{path}': {reason}")


def _current_kind() -> RuntimeCacheKind:
    """Returns the kind of the current CUDA device.

    Raises:
        UnknownKindError: There is no usable driver or device.
    """
    is_chosen = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    ordinal = torch.cuda.current_device() if is_chosen else 0
    return kind_of_device(ordinal, trt.__version__)


def _unknown_kind(operation: str, path: str, reason: str) -> str:
    return (
        f"Can't {operation} the runtime cache '{path}': it is a directory with a file for each "
        f"kind of machine, and the kind of this one is unknown: {reason}"
    )


def has_file(path: str) -> bool:
    """Returns True if the path has kernels for the current CUDA device, or if that is unknown."""
    try:
        files = files_to_load(path, _current_kind()) if is_directory(path) else [path]
    except UnknownKindError:
        return True
    return not all(map(is_empty, files))


def _accept(offers: Sequence[str]) -> None:
    for offer in offers:
        accept_offer(offer)


def _allocate(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def _contiguous_bytes(data: torch.Tensor) -> torch.Tensor:
    """Returns the bytes in one piece, without a copy if they already are.

    Raises:
        RuntimeError: They are not a tensor of bytes.
    """
    wanted = (
        "The bytes of a runtime cache must be a dense one-dimensional uint8 tensor on the "
        "CPU, got "
    )
    if not isinstance(data, torch.Tensor):
        raise RuntimeError(f"{wanted}a {type(data).__name__}")
    is_plain = data.layout == torch.strided and data.device.type == "cpu"
    if not (is_plain and data.dtype == torch.uint8 and data.dim() == 1):
        raise RuntimeError(
            f"{wanted}one of {data.dtype} and shape {list(data.shape)} on {data.device}, "
            f"{data.layout}"
        )
    return data.detach().contiguous()


def _copy(data: torch.Tensor) -> torch.Tensor:
    contiguous = _contiguous_bytes(data)
    copied = _allocate(contiguous.numel())
    # Not clone(), which waits forever for OpenMP's threads in a child of fork().
    ctypes.memmove(address_of(copied), address_of(contiguous), contiguous.nbytes)
    return copied
