"""Merges serialized caches without an engine that has made a cache live."""

from __future__ import annotations

import threading
from typing import Any

import tensorrt_rtx as trt
import torch

from torch_tensorrt._plan_builder import configure, parse_compute_capabilities
from torch_tensorrt.runtime._cache.forks import leak, start_over_in_children
from torch_tensorrt.runtime._cache.live_runtime_cache import LiveRuntimeCache
from torch_tensorrt.runtime._cache.stream_capture import relaxed_stream_capture
from torch_tensorrt.runtime._engine.engine_loader import (
    LoadedEngine,
    load_engine,
    tensorrt_logger,
)
from torchtrt_cache.kinds import RuntimeCacheKind, kind_of_device
from torchtrt_cache.transfer import CannotMergeError


class Merger:
    """Merges serialized caches of one kind of machine, on a GPU of that kind. A `transfer.Merge`.

    Only the config of an engine can create an `IRuntimeCache`. So the first call builds an engine
    of one layer, loads it, and keeps the cache for later calls. Without an execution context, no
    kernel is compiled.

    A child of fork() starts over.

    Thread safety: may be called from any thread, also while others capture CUDA graphs.
    """

    def __init__(self, kind: RuntimeCacheKind) -> None:
        self._kind = kind
        self._start_over()
        start_over_in_children(self)

    def _start_over(self) -> None:
        self._lock = threading.Lock()
        self._live: LiveRuntimeCache | None = None  # guarded by _lock

    def start_over_in_child(self) -> None:
        """Called in a child of fork(): see forks.py."""
        leak(self._live)
        self._start_over()

    def __call__(self, theirs: memoryview, ours: memoryview) -> memoryview:
        """Returns the kernels of both. If `theirs` has them all, the result has its size.

        Raises:
            CannotMergeError: TensorRT-RTX rejects one of the two, or can't merge caches at all.
            RuntimeError: This machine has no GPU of the kind, or TensorRT-RTX fails this time.
        """
        try:
            ordinal = _ordinal_of(self._kind)  # also loads the driver for the next line
            with relaxed_stream_capture(), torch.cuda.device(ordinal):
                merged = self._live_cache().merge(theirs, ours)
        except Exception as error:
            raise RuntimeError(str(error)) from error
        if merged.data is None:
            raise CannotMergeError(merged.reason_against)
        return merged.data

    def _live_cache(self) -> LiveRuntimeCache:
        with self._lock:
            if self._live is None:
                loaded = _load_engine(self._kind)  # outlives the config
                self._live = _create_cache(loaded)
            return self._live


def _ordinal_of(kind: RuntimeCacheKind) -> int:
    """Returns the ordinal of a CUDA device of the kind.

    Returns -1 if there is none. That keeps torch's current device, and the loader decides.
    """
    for ordinal in range(torch.cuda.device_count()):
        if _are_equal(kind_of_device(ordinal, trt.__version__), kind):
            return ordinal
    return -1


def _are_equal(one: RuntimeCacheKind | None, other: RuntimeCacheKind) -> bool:
    # Compares the file names, because a file name may be all that is known of a kind.
    return one is not None and one.file_name() == other.file_name()


def _load_engine(kind: RuntimeCacheKind) -> LoadedEngine:
    plan = _build_plan(divmod(kind.compute_capability, 10))
    none = f"there is no usable GPU of the kind '{kind.file_name()}' here"
    try:
        loaded = load_engine(plan)
    except RuntimeError as error:
        raise RuntimeError(f"{none}: {error}") from error
    if not _are_equal(loaded.kind, kind):
        raise RuntimeError(none)
    return loaded


def _create_cache(loaded: LoadedEngine) -> LiveRuntimeCache:
    """Requires that the caller keeps the engine until this returns and its config is destroyed."""
    config = loaded.engine.create_runtime_config()
    if config is None:
        raise RuntimeError(
            "TensorRT-RTX could not create the runtime config of an engine"
        )
    live = LiveRuntimeCache.create(config, loaded.device, loaded.kind)
    if live is None:
        raise RuntimeError("TensorRT-RTX could not create a runtime cache")
    return live


class _Errors(trt.IErrorRecorder):  # type: ignore[misc]
    """The errors of one builder. TensorRT-RTX's only logger writes them to stdout."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def report_error(self, code: Any, text: str) -> bool:
        self.texts.append(text.strip())
        return False  # the error does not end the operation

    def num_errors(self) -> int:
        return len(self.texts)

    def get_error_code(self, index: int) -> Any:
        return trt.ErrorCodeTRT.UNSPECIFIED_ERROR

    def get_error_desc(self, index: int) -> str:
        return self.texts[index]

    def has_overflowed(self) -> bool:
        return False

    def clear(self) -> None:
        self.texts.clear()


def _build_plan(capability: tuple[int, int]) -> memoryview:
    """Builds an engine of one layer for a compute capability."""
    capabilities = parse_compute_capabilities([capability])
    errors = _Errors()
    builder = trt.Builder(tensorrt_logger())
    builder.error_recorder = errors
    network = builder.create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    x = network.add_input("x", trt.DataType.FLOAT, (1,))
    relu = network.add_activation(x, trt.ActivationType.RELU)
    network.mark_output(relu.get_output(0))
    config = configure(builder, [], capabilities)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reasons = "; ".join(errors.texts) or "it gave no reason"
        raise RuntimeError(
            f"TensorRT-RTX can't build an engine to merge with: {reasons}"
        )
    return memoryview(bytearray(plan))
