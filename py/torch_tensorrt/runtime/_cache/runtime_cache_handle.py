"""The cache handle of the Python runtime, the twin of core/runtime/RuntimeCacheHandle.h."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torch_tensorrt.runtime._cache.runtime_cache_file import RuntimeCacheFile
from torch_tensorrt.runtime._cache.tensor_memory import memory_of, tensor_of
from torch_tensorrt.runtime._cache.unlocked_logger import unlocked_logger

_LOGGER = unlocked_logger(__name__)

_State = tuple[str, torch.Tensor, list[str], bool]


class RuntimeCacheHandle:
    """The kernels of a runtime cache, and the file that they come from and go to.

    Any number of engines of the Python runtime may share one. Pending at first: it has serialized
    bytes, or none. The first engine that uses it makes it live (`ensure_materialized`): then it has
    a `tensorrt_rtx.IRuntimeCache`, into which TensorRT-RTX puts each kernel that it compiles.

    Nothing here makes a file lose what other processes saved there, but for bytes given to a
    pending handle by `deserialize`, which is what the caller asked for, and where TensorRT-RTX
    can't merge, which is a warning (see `save`).

    Errors are RuntimeErrors; those of the disk name path, operation and reason. A load or save that
    raises leaves the handle as it was. Bytes that TensorRT-RTX rejects, because they are damaged or
    come of another version, GPU or driver, are a warning with their file and size, never an error.

    Thread safety: any method from any thread, while engines run too; the disk work of one handle is
    done one call at a time.

    Pickles and copies carry path, bytes and `autosave`, and are pending.

    Args:
        path: where `load` and `save` go by default; without one they need theirs. The constructor
            touches no disk.
        lock_timeout: seconds to wait for the lock of a file.

    Attributes:
        autosave: whether engines that use this cache save it on their own when they end or get
            another one.
    """

    def __init__(self, path: str, lock_timeout: float = 10.0) -> None:
        self.autosave = True
        self._path = path
        self._lock_timeout = lock_timeout
        # All are reentrant because the garbage collector may run a `__del__` that saves anywhere.
        # A lock is taken only before those below it.
        self._materialize_lock = threading.RLock()
        self._disk_lock = threading.RLock()
        self._state_lock = threading.RLock()  # never held for disk work

        # Guarded by _disk_lock.
        self._is_at_disk = False
        self._files: dict[str, RuntimeCacheFile] = {}  # by path

        # Guarded by _state_lock.
        self._bytes = _allocate(0)  # never written to; empty once live
        # The files that the contents came from or went to; what they have now may be newer.
        self._stored_at: set[str] = set()
        self._live: _Live | None = None  # never changes once set
        self._rejected_at: set[str] = (
            set()
        )  # files about which there has been a warning
        # _files know generations whose kernels may not be here.
        self._generations_are_stale = False
        # Digest of the contents when they were loaded from a file, or a live cache was saved to it.
        self._saved_contents: dict[str, bytes] = {}

    @property
    def path(self) -> str:
        return self._path

    def serialize(self) -> torch.Tensor:
        """The bytes, uint8 [size in bytes] on the CPU, empty if there are none.

        A pending handle's share its memory until somebody writes to them, which makes them a copy;
        a live one's are serialized anew.
        """
        with self._state_lock:
            if self._live is None:
                return _lazy_clone(self._bytes)
            return tensor_of(self._serialize_live())

    def deserialize(self, data: torch.Tensor) -> None:
        """Takes over a copy of `data`.

        It replaces a pending handle's bytes. A live cache adds it to what it has, if that is what
        TensorRT-RTX does, which does not document it. An empty tensor clears either.

        Args:
            data: uint8 [size in bytes] on the CPU.

        Raises:
            RuntimeError: it is another tensor, or a live cache could not be cleared.
        """
        copied = _copy(data)
        with self._state_lock:
            if self._live is None:
                self._bytes = copied
                self._stored_at = set()
                self._saved_contents = {}
                self._generations_are_stale = True
            elif copied.numel() > 0:
                self._feed(memory_of(copied), "")
            else:
                if not self._live.cache.reset():
                    raise RuntimeError(
                        f"TensorRT-RTX could not clear the runtime cache '{self._path}'"
                    )
                self._generations_are_stale = True
                self._saved_contents = {}

    def has_cache(self) -> bool:
        """Whether there are bytes, or a live cache."""
        with self._state_lock:
            return self._live is not None or self._bytes.numel() > 0

    def load(self, path: str = "") -> int:
        """Takes over the bytes of a file, as `deserialize` does, and returns their number.

        0, and all stays as it is, if there is no such file, or an empty one, or the live cache
        rejects it.

        Args:
            path: the file; the handle's own path if empty.
        """
        source = self._path_or_default(path)
        with self._disk_work():
            loaded = _allocate(0)

            def allocate(size: int) -> memoryview:
                nonlocal loaded
                loaded = _allocate(size)
                return memory_of(loaded)

            size = self._file(source).load(allocate)
            if size == 0:
                return 0
            contents = _digest(memory_of(loaded))
            with self._state_lock:
                if self._live is None:
                    self._bytes = loaded
                    self._stored_at = {source}
                    self._saved_contents = {source: contents}
                    # Of other files than this.
                    self._generations_are_stale = len(self._files) > 1
                elif not self._feed(memory_of(loaded), source):
                    return 0
            return size

    def save(self, path: str = "") -> int:
        """Writes the bytes to a file and returns their number.

        0 if nothing was to be written: no kernels, or the file has them.

        A live cache writes what the file has beside its own kernels. Where that can't be found out,
        because TensorRT-RTX rejects the file's bytes or replaces a cache's contents by what it
        deserializes, its own are written and a warning tells of the others.

        A pending handle can't merge. If its bytes came from that file, or went there, and others
        have saved theirs since, it writes nothing, since the file has had them. Else they replace
        what is there, with a warning if it had not read that.

        Args:
            path: the file; the handle's own path if empty.
        """
        target = self._path_or_default(path)
        with self._disk_work():
            with self._state_lock:
                live, pending = self._live, self._bytes
                is_stored_there = target in self._stored_at
                ours = (
                    self._serialize_live() if live is not None else memory_of(pending)
                )
            if live is None:
                return self._save_pending(target, pending, ours, is_stored_there)
            return self._save_live(target, live, ours)

    def ensure_materialized(self, config: Any) -> Any:
        """Makes the handle live, once; `config` creates the cache.

        A handle without bytes loads its path first; that it can't is a warning and a cold cache.
        Requires the current CUDA device to be that of `config`'s engine.

        Args:
            config: a `tensorrt_rtx.IRuntimeConfig`.

        Returns:
            The `tensorrt_rtx.IRuntimeCache`, the same to everyone. It must outlive the last use of
            each config that it is attached to, and of each context made with such a config.

        Raises:
            RuntimeError: TensorRT-RTX can't create a cache; the handle stays pending then.
        """
        if config is None:
            raise RuntimeError(
                "A runtime cache needs an IRuntimeConfig that creates it"
            )
        with self._materialize_lock:
            if self._live is not None:
                return self._live.cache
            live = _Live.create(config)
            if live is None:
                raise RuntimeError(
                    f"TensorRT-RTX could not create a runtime cache for '{self._path}'"
                )
            if self._path and not self.has_cache():
                try:
                    self.load()
                except RuntimeError as error:
                    _LOGGER.warning("%s. Kernels will be compiled anew", str(error))
            with self._state_lock:
                self._live = live
                data, self._bytes = self._bytes, _allocate(0)
                contents, were_stale = self._saved_contents, self._generations_are_stale
                source = min(self._stored_at, default="")
                if data.numel() > 0 and self._feed(memory_of(data), source):
                    # The cache was empty, so whatever deserialize does, it has just what the bytes
                    # had.
                    self._saved_contents = contents
                    self._generations_are_stale = were_stale
            return live.cache

    def __reduce__(self) -> tuple[Any, ...]:
        return from_state, (self._state(),)

    def _state(self) -> _State:
        with self._state_lock:
            stored_at = set(self._stored_at)
            if self._live is None:
                data = _lazy_clone(self._bytes)
            else:
                data = tensor_of(self._serialize_live())
                # What the copy may overwrite as long as it is pending: no newer file, since this
                # cache can still merge with that.
                stored_at |= {self._path} - {""}
            return self._path, data, sorted(stored_at), self.autosave

    def _path_or_default(self, path: str) -> str:
        if not path and not self._path:
            raise RuntimeError(
                "This runtime cache has no path of its own, so load() and save() need one as their "
                "argument"
            )
        return path or self._path

    @contextmanager
    def _disk_work(self) -> Iterator[None]:
        with self._disk_lock:
            if self._is_at_disk:  # in a finalizer, a signal handler or a log handler
                raise RuntimeError(
                    f"A load or save of the runtime cache '{self._path}' can't start within "
                    "another of this thread"
                )
            self._is_at_disk = True
            try:
                yield
            finally:
                self._is_at_disk = False

    def _file(self, path: str) -> RuntimeCacheFile:
        """Requires _disk_lock."""
        if path not in self._files:
            self._files[path] = RuntimeCacheFile(path, self._lock_timeout)
        return self._files[path]

    def _serialize_live(self) -> memoryview:
        """Requires _state_lock and a live cache."""
        assert self._live is not None
        with self._live.on_device():
            data = self._live.cache.serialize()
        if data is None:
            raise RuntimeError(
                f"TensorRT-RTX could not serialize the runtime cache '{self._path}'"
            )
        return _bytes_view(data)

    def _feed(self, data: memoryview, source: str) -> bool:
        """Gives bytes to the live cache; False, with a warning, if it rejects them.

        `source` is the file that they are from, or empty. Requires _state_lock.
        """
        assert self._live is not None
        # Either the file's kernels are not here, or perhaps those of others no longer.
        self._generations_are_stale = True
        self._saved_contents = {}
        with self._live.on_device():
            is_accepted = self._live.cache.deserialize(data)
        if not is_accepted:
            self._report_rejection(
                len(data), source, "They are not used: kernels will be compiled anew"
            )
            return False
        if source:
            self._stored_at.add(source)
        return True

    def _report_rejection(self, size: int, source: str, consequence: str) -> None:
        """A warning once for each file. Requires _state_lock."""
        is_news = not source or source not in self._rejected_at
        self._rejected_at |= {source} - {""}
        _LOGGER.log(
            logging.WARNING if is_news else logging.INFO,
            "TensorRT-RTX rejected the %d bytes of %s: they are damaged, or come of another "
            "TensorRT-RTX version, GPU, operating system or CUDA driver. %s",
            size,
            (
                f"the runtime cache '{source}'"
                if source
                else "a runtime cache given to it"
            ),
            consequence,
        )

    def _save_pending(
        self, target: str, pending: torch.Tensor, ours: memoryview, is_stored: bool
    ) -> int:
        replaced = 0

        def merge(disk: memoryview, ours: memoryview) -> memoryview:
            nonlocal replaced
            if is_stored:
                return memoryview(b"")
            replaced = len(disk)
            return ours

        size = self._file(target).save(ours, merge)
        if size > 0 and replaced > 0:
            _LOGGER.warning(
                "Saving %d bytes to the runtime cache '%s' replaced %d bytes that had not been "
                "read from it",
                size,
                target,
                replaced,
            )
        with self._state_lock:
            if self._bytes is pending:
                self._stored_at.add(target)
        return size

    def _save_live(self, target: str, live: _Live, ours: memoryview) -> int:
        contents = _digest(ours)
        with self._state_lock:
            if self._generations_are_stale:
                self._generations_are_stale = False
                self._files.clear()
            # Not even the lock is taken, which a read-only directory would refuse.
            if self._saved_contents.get(target) == contents and _has_bytes(target):
                _LOGGER.info(
                    "There are no new kernels for the runtime cache '%s'", target
                )
                return 0
        # Writing it would at best create a file without kernels, and at worst overwrite one with.
        if live.empty is not None and live.empty == contents:
            _LOGGER.info("There are no kernels for the runtime cache '%s'", target)
            return 0
        merged = _Merged(None)
        lost = 0

        def merge(disk: memoryview, ours: memoryview) -> memoryview:
            nonlocal merged, lost
            merged = _Merged(None)  # frees the last one first
            merged = live.merge(disk, ours)
            lost = len(disk) if merged.data is None else 0
            return ours if merged.data is None else merged.data

        with live.on_device():
            size = self._file(target).save(ours, merge)
        if live.scratch is not None:
            live.scratch.reset()  # frees the memory
        with self._state_lock:
            if size > 0 and lost > 0 and merged.disk_was_rejected:
                self._report_rejection(
                    lost, target, "What this process compiled replaced them"
                )
            elif size > 0 and lost > 0:
                _LOGGER.warning(
                    "The %d bytes that others saved to the runtime cache '%s' could not be merged "
                    "and were replaced by %d of this process's: %s",
                    lost,
                    target,
                    size,
                    merged.reason_against,
                )
            self._stored_at.add(target)
            self._saved_contents[target] = contents
        return size


@contextmanager
def _on_device(device: int | None) -> Iterator[None]:
    """Makes the device of a live cache the current one, with a CUDA context.

    TensorRT-RTX compares the bytes that it serializes or deserializes to the context of the calling
    thread.
    """
    if device is None:
        yield
        return
    with torch.cuda.device(device):
        # A new thread has no context until it calls CUDA, which the line above does not where the
        # device is the current one already.
        try:
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            torch.cuda.Event().record(stream)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            _LOGGER.debug("Can't make a CUDA context current: %s", error)
        yield


@dataclass(frozen=True)
class _Merged:
    data: memoryview | None  # the kernels of both; None if they can't be had
    disk_was_rejected: bool = False  # that is why
    reason_against: str = ""  # or this is


@dataclass(frozen=True)
class _Live:
    """A live cache, and what merging it with a file needs."""

    cache: Any
    # Empty, for merges, which may come after the last config that could create one. None if it
    # could not be created. Used under _disk_lock alone.
    scratch: Any
    empty: bytes | None  # digest of a cache without kernels; None if that is not known
    device: int | None  # None without CUDA

    @classmethod
    def create(cls, config: Any) -> _Live | None:
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        with _on_device(device):
            cache = config.create_runtime_cache()
            if cache is None:
                return None
            scratch = config.create_runtime_cache()
            empty = scratch.serialize() if scratch is not None else None
        return cls(
            cache,
            scratch,
            _digest(_bytes_view(empty)) if empty is not None else None,
            device,
        )

    def on_device(self) -> AbstractContextManager[None]:
        return _on_device(self.device)

    def merge(self, disk: memoryview, ours: memoryview) -> _Merged:
        """What a cache has that deserialized both.

        TensorRT-RTX does not document whether `deserialize` adds to what a cache has. It does if
        both orders give the same kernels; otherwise one of the two got lost on the way. Serialized
        caches of one kind are told apart by their size, which only a union of two can exceed, so
        that nothing is assumed of the order of kernels in them.
        """
        failed = _Merged(
            None, reason_against="TensorRT-RTX failed to deserialize or serialize them"
        )
        if self.scratch is None:
            return _Merged(
                None,
                reason_against="TensorRT-RTX could not create a cache to merge them in",
            )
        if not self.scratch.reset():
            return failed
        if not self.scratch.deserialize(disk):
            return _Merged(None, disk_was_rejected=True)
        disk_first = self._with_contents(ours)
        if disk_first is None:
            return failed
        if len(disk_first) > max(len(disk), len(ours)):
            _LOGGER.info("TensorRT-RTX's deserialize adds to a runtime cache")
            return _Merged(disk_first)
        if not self.scratch.reset() or not self.scratch.deserialize(ours):
            return failed
        ours_first = self._with_contents(disk)
        if ours_first is None:
            return failed
        if len(ours_first) == len(disk_first) and (
            len(disk) != len(ours) or _digest(ours_first) == _digest(disk_first)
        ):
            _LOGGER.info(
                "TensorRT-RTX's deserialize adds to a runtime cache, and one of the two merged had "
                "all of the other's"
            )
            return _Merged(disk_first)
        _LOGGER.info("TensorRT-RTX's deserialize replaces what a runtime cache has")
        return _Merged(
            None,
            reason_against="TensorRT-RTX's deserialize replaces what a cache has",
        )

    def _with_contents(self, data: memoryview) -> memoryview | None:
        """Deserializes into the scratch cache and serializes that; None if either fails."""
        if not self.scratch.deserialize(data):
            return None
        serialized = self.scratch.serialize()
        return _bytes_view(serialized) if serialized is not None else None


def from_state(state: _State) -> RuntimeCacheHandle:
    path, data, stored_at, autosave = state
    handle = RuntimeCacheHandle(path)
    handle._bytes = _copy(data)
    handle._stored_at = set(stored_at)
    handle.autosave = autosave
    return handle


def _allocate(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def _lazy_clone(data: torch.Tensor) -> torch.Tensor:
    clone: torch.Tensor = torch.ops.aten._lazy_clone(data)
    return clone


def _bytes_view(data: Any) -> memoryview:
    """Whatever an `IHostMemory` calls its items, they are bytes."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes > 0 else memoryview(b"")


def _copy(data: torch.Tensor) -> torch.Tensor:
    wanted = (
        "The bytes of a runtime cache are a dense one-dimensional uint8 tensor on the "
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
    return data.detach().clone(memory_format=torch.contiguous_format)


def _digest(data: memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _has_bytes(path: str) -> bool:
    try:
        return Path(path).stat().st_size > 0
    except OSError:
        return False
