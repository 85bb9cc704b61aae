"""Merging serialized caches where no engine has made a cache live."""

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
    """Merges serialized caches of one kind of machine, on a GPU of that kind; a `transfer.Merge`.

    Only the config of an engine makes an `IRuntimeCache`. So the first call builds an engine of one
    layer and loads it, and keeps the cache for later calls. There is no execution context, so no
    kernel is compiled.

    A child of fork() starts over.

    Thread safety: calls from any thread, also while others capture CUDA graphs.
    """

    def __init__(self, kind: RuntimeCacheKind) -> None:
        self._kind = kind
        self._start_over()
        start_over_in_children(self)

    def _start_over(self) -> None:
        self._lock = threading.Lock()
        self._live: LiveRuntimeCache | None = None  # guarded by _lock

    def start_over_in_child(self) -> None:
        """In a child of fork(); see forks.py."""
        leak(self._live)
        self._start_over()

    def __call__(self, theirs: memoryview, ours: memoryview) -> memoryview:
        """Returns the kernels of both: bytes of the size of `theirs` if that has them all.

        Raises:
            CannotMergeError: TensorRT-RTX rejects one of the two, or can't merge any.
            RuntimeError: There is no GPU of the kind here, or TensorRT-RTX fails now.
        """
        try:
            ordinal = _ordinal_of(self._kind)  # loads the driver, for what follows
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
                self._live = _create_cache(_load_engine(self._kind))
            return self._live


def _ordinal_of(kind: RuntimeCacheKind) -> int:
    """That of a CUDA device of the kind.

    Without one it is -1, which leaves the current device to torch and the choice to the loader.
    """
    for ordinal in range(torch.cuda.device_count()):
        if _are_equal(kind_of_device(ordinal, trt.__version__), kind):
            return ordinal
    return -1


def _are_equal(one: RuntimeCacheKind | None, other: RuntimeCacheKind) -> bool:
    # By their names, since that of a file may be all that is known of a kind.
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
    """The caller keeps the engine until its config is gone, which is when this returns."""
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
    """The errors of one builder. TensorRT-RTX has one logger for all, which writes to stdout."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def report_error(self, code: Any, text: str) -> bool:
        self.texts.append(text.strip())
        return False  # it does not end what goes on

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
    """An engine of one layer for a compute capability."""
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
