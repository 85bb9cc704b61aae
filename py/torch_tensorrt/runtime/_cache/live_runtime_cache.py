"""A runtime cache that engines use. The twin of core/runtime/LiveRuntimeCache.h."""

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
    data: memoryview | None  # the kernels of both; None if they can't be merged
    adds_nothing: bool = False  # the bytes on disk have all of the kernels
    reason_against: str = ""  # why they can't be merged
    is_disk_rejected: bool = False  # because TensorRT-RTX rejects the bytes on disk
    offers: tuple[str, ...] = ()  # the offers whose kernels are in `data`


@dataclass(frozen=True)
class LiveRuntimeCache:
    """An `IRuntimeCache` on one device, and a second one in which serialized caches are merged.

    Makes the device current, with a CUDA context, where TensorRT-RTX needs that. Memoryviews have
    the format "B".

    Thread safety: `merge` may be called from any thread, the rest from one thread at a time
    (external synchronization). Engines may compile into the cache meanwhile.
    """

    device: torch.device
    kind: RuntimeCacheKind | None  # the kind of the device; None if it is unknown
    cache: Any
    # Created early, because a merge may follow the last config that could create a cache. Empty
    # between merges. None if it could not be created.
    scratch: Any
    # Digest of a serialized cache without kernels. None if that is unknown.
    empty: bytes | None
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
        """Returns the serialized cache, or None if TensorRT-RTX fails."""
        with _on_device(self.device):
            data = self.cache.serialize()
        return None if data is None else _bytes_view(data)

    def deserialize(self, data: memoryview) -> bool:
        """Returns False if TensorRT-RTX rejects the bytes."""
        with _on_device(self.device):
            return bool(self.cache.deserialize(data))

    def is_without_kernels(self, data: memoryview) -> bool:
        """Returns True if a cache without kernels serializes to these bytes.

        Returns False if that is unknown.
        """
        return self.empty == digest_of(data)

    def merge(
        self, disk: memoryview, ours: memoryview, offers: Sequence[str] = ()
    ) -> Merged:
        """Merges two serialized caches and, if that succeeds, the offers of other savers.

        See `RuntimeCacheFile.wait_for_turn` for the offers.
        """
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
        """Adds the offers of other savers. The scratch cache has the two caches merged so far."""
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
        """Merges two serialized caches.

        TensorRT-RTX does not document whether `deserialize` adds to the contents of a cache or
        replaces them. It adds if both orders give the same kernels; otherwise one of the two was
        lost. Serialized caches of one kind are compared by size, so that nothing is assumed about
        the order of the kernels in them. Only a union of the two can be larger than both.
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
                "TensorRT-RTX's deserialize adds to a runtime cache, and one of the two had all "
                "kernels of the other"
            )
            return Merged(disk_first, adds_nothing=len(disk_first) == len(disk))
        _LOGGER.info("TensorRT-RTX's deserialize replaces what a runtime cache has")
        return Merged(
            None,
            reason_against="TensorRT-RTX's deserialize replaces what a cache has",
        )

    def _with_contents(self, data: memoryview) -> memoryview | None:
        """Deserializes into the scratch cache and serializes it. Returns None if either fails."""
        if not self.scratch.deserialize(data):
            return None
        serialized = self.scratch.serialize()
        return _bytes_view(serialized) if serialized is not None else None


@contextmanager
def _on_device(device: torch.device) -> Iterator[None]:
    """Makes `device` current, with a CUDA context, in a block.

    TensorRT-RTX checks the bytes that it serializes or deserializes against the context of the
    calling thread.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        # A new thread has no context until it calls CUDA. The line above does not call CUDA if the
        # device is already the current one.
        try:
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            torch.cuda.Event().record(stream)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            _LOGGER.debug("Can't make a CUDA context current: %s", error)
        yield


def _bytes_view(data: Any) -> memoryview:
    """Returns the memory of an `IHostMemory` as bytes, whatever its item type is."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes > 0 else memoryview(b"")


def digest_of(data: memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
