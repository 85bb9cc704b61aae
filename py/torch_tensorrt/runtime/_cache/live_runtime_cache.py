"""A runtime cache that an engine uses; the twin of core/runtime/LiveRuntimeCache.h."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._C._profiler import _RecordFunctionFast

from torchtrt_cache.kinds import RuntimeCacheKind
from torchtrt_cache.runtime_cache_file import read_offer
from torchtrt_cache.unlocked_logger import unlocked_logger

_LOGGER = unlocked_logger("live_runtime_cache")


@dataclass(frozen=True)
class Merged:
    data: memoryview | None  # the kernels of both; None if they can't be had
    adds_nothing: bool = False  # those on disk are all of them
    reason_against: str = ""  # why they can't be had
    is_disk_rejected: bool = False  # that is the reason
    offers: tuple[str, ...] = ()  # those that are in `data` too


@dataclass(frozen=True)
class LiveRuntimeCache:
    """An `IRuntimeCache` on one device, and a second one to merge serialized caches in.

    Makes the device current, with a CUDA context, where TensorRT-RTX needs that. Bytes are of
    format "B".

    Thread safety: `merge` from any thread; the rest one thread at a time (external
    synchronization), while engines compile into the cache.
    """

    device: torch.device
    kind: RuntimeCacheKind | None  # that of the device; None if it is unknown
    cache: Any
    # Empty, for merges, which may come after the last config that could create one. None if it
    # could not be created.
    scratch: Any
    empty: bytes | None  # digest of a cache without kernels; None if that is not known
    scratch_lock: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def create(
        cls, config: Any, device: torch.device, kind: RuntimeCacheKind | None
    ) -> LiveRuntimeCache | None:
        with _on_device(device):
            cache = config.create_runtime_cache()
            if cache is None:
                return None
            scratch = config.create_runtime_cache()
            empty = None if scratch is None else scratch.serialize()
        digest = None if empty is None else digest_of(_bytes_view(empty))
        return cls(device, kind, cache, scratch, digest)

    def serialize(self) -> memoryview | None:
        """None if TensorRT-RTX fails."""
        with _on_device(self.device):
            data = self.cache.serialize()
        return None if data is None else _bytes_view(data)

    def deserialize(self, data: memoryview) -> bool:
        """False if TensorRT-RTX rejects the bytes."""
        with _on_device(self.device):
            return bool(self.cache.deserialize(data))

    def is_without_kernels(self, data: memoryview) -> bool:
        """Whether a cache without kernels serializes to these bytes; False if that is unknown."""
        return self.empty == digest_of(data)

    def merge(
        self, disk: memoryview, ours: memoryview, offers: Sequence[str] = ()
    ) -> Merged:
        """What a cache has that deserialized both, and offers of other savers, in the scratch."""
        if self.scratch is None:
            return Merged(
                None,
                reason_against="TensorRT-RTX could not create a cache to merge them in",
            )
        with (
            _RecordFunctionFast("RuntimeCache:merge"),
            self.scratch_lock,
            _on_device(self.device),
        ):
            merged = self._merge(disk, ours)
            if merged.data is not None:
                merged = self._merge_offers(merged, merged.data, offers, len(disk))
            self.scratch.reset()  # frees the memory
            return merged

    def _merge_offers(
        self, merged: Merged, data: memoryview, offers: Sequence[str], disk_size: int
    ) -> Merged:
        """Merges offers in the scratch cache, which has what was merged so far."""
        accepted = []
        for offer in offers:
            offered = read_offer(offer)
            if offered is not None and self.scratch.deserialize(offered):
                accepted.append(offer)
        serialized = self.scratch.serialize() if accepted else None
        everything = None if serialized is None else _bytes_view(serialized)
        if everything is None or len(everything) < len(data):
            return merged
        adds_nothing = len(everything) == disk_size
        return Merged(everything, adds_nothing, offers=tuple(accepted))

    def _merge(self, disk: memoryview, ours: memoryview) -> Merged:
        """Tells adding from replacing.

        TensorRT-RTX does not document whether `deserialize` adds to what a cache has. It does if
        both orders give the same kernels; otherwise one of the two got lost on the way. Serialized
        caches of one kind are told apart by their size, which only a union of two can exceed, so
        that nothing is assumed of the order of kernels in them.
        """
        failed = Merged(
            None, reason_against="TensorRT-RTX failed to deserialize or serialize them"
        )
        if not self.scratch.reset():
            return failed
        if not self.scratch.deserialize(disk):
            return Merged(
                None,
                reason_against="TensorRT-RTX rejected them",
                is_disk_rejected=True,
            )
        disk_first = self._with_contents(ours)
        if disk_first is None:
            return failed
        if len(disk_first) > max(len(disk), len(ours)):
            _LOGGER.info("TensorRT-RTX's deserialize adds to a runtime cache")
            return Merged(disk_first)
        if not self.scratch.reset() or not self.scratch.deserialize(ours):
            return failed
        ours_first = self._with_contents(disk)
        if ours_first is None:
            return failed
        if len(ours_first) == len(disk_first) and (
            len(disk) != len(ours) or digest_of(ours_first) == digest_of(disk_first)
        ):
            _LOGGER.info(
                "TensorRT-RTX's deserialize adds to a runtime cache, and one of the two merged had "
                "all of the other's"
            )
            return Merged(disk_first, adds_nothing=len(disk_first) == len(disk))
        _LOGGER.info("TensorRT-RTX's deserialize replaces what a runtime cache has")
        return Merged(
            None,
            reason_against="TensorRT-RTX's deserialize replaces what a cache has",
        )

    def _with_contents(self, data: memoryview) -> memoryview | None:
        """Deserializes into the scratch cache and serializes that; None if either fails."""
        if not self.scratch.deserialize(data):
            return None
        serialized = self.scratch.serialize()
        return _bytes_view(serialized) if serialized is not None else None


@contextmanager
def _on_device(device: torch.device) -> Iterator[None]:
    """Makes the device of a live cache the current one, with a CUDA context.

    TensorRT-RTX compares the bytes that it serializes or deserializes to the context of the calling
    thread.
    """
    if device.type != "cuda":
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


def _bytes_view(data: Any) -> memoryview:
    """Whatever an `IHostMemory` calls its items, they are bytes."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes > 0 else memoryview(b"")


def digest_of(data: memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
