"""What a worker does with engines, and with TensorRT-RTX's own runtime caches."""

from __future__ import annotations

import faulthandler
import functools
import io
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from tools.gpu.plans import CASES, FIRST, relative_error
from tools.gpu.questions.devices import GpuDevice, Plan
from torch_tensorrt.dynamo.runtime import TorchTensorRTModule
from torch_tensorrt.runtime import (
    RuntimeCache,
    RuntimeCacheStatistics,
    RuntimeSettings,
)
from torch_tensorrt.runtime._cache.tensor_memory import memory_of
from torch_tensorrt.runtime._engine.engine_loader import LoadedEngine, load_engine

RUNTIMES = ["C++", "Python"]

Result = TypeVar("Result")

_device: GpuDevice
# The engines that were started, with their caches.
_started: list[tuple[TorchTensorRTModule, RuntimeCache]] = []


def begin(device: GpuDevice, log: Path) -> None:
    """Makes this process ready to load plans. Its output goes to the log."""
    global _device
    _device = device
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)  # where TensorRT-RTX's Python package logs
    os.dup2(file, 2)
    faulthandler.enable()
    call(120, device.install)


def call(timeout: float, function: Callable[..., Result], *arguments: object) -> Result:
    """Calls the function, and ends this process if that takes more than `timeout` seconds."""
    faulthandler.dump_traceback_later(timeout, exit=True)
    try:
        return function(*arguments)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _module(
    runtime: str, plan: Plan, settings: RuntimeSettings | None = None
) -> TorchTensorRTModule:
    return TorchTensorRTModule(
        *plan, runtime_settings=settings, use_python_runtime=runtime == "Python"
    )


def _error(y: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the relative error of a result. Raises RuntimeError if rounding can't explain it."""
    error = relative_error(y, expected)
    if not error <= 0.1:
        raise RuntimeError(f"the result is wrong: relative error {error:.1e}")
    return error


def replay(runtime: str, name: str) -> float:
    """Returns the relative error of a CUDA graph that is replayed with a new input."""
    x, expected = _device.example(name, None)
    module = _module(runtime, _device.plan(name))
    other = torch.zeros_like(x)
    replayed = torch.cuda.make_graphed_callables(lambda x: module(x), (other,))
    y: Any = replayed(x)
    return _error(y, expected)


@dataclass(frozen=True)
class Start:
    """The first inference of an engine.

    Attributes:
        seconds: From the plan's bytes in memory to the result on the host.
        error: The relative error of the result.
        statistics: Those of its cache after it.
    """

    seconds: float
    error: float
    statistics: RuntimeCacheStatistics

    @property
    def compiled_nothing(self) -> bool:
        """TensorRT-RTX adds to the cache each kernel that it compiles."""
        return self.statistics.size_added == 0


def start(runtime: str, name: str, path: Path, batch: int | None = None) -> Start:
    """Starts an engine on a cache of its own for that path. Both live on."""
    plan = _device.plan(name)
    x, expected = _device.example(name, batch)
    begin = time.perf_counter()
    cache = RuntimeCache(path, use_python_runtime=runtime == "Python")
    module = _module(runtime, plan, RuntimeSettings(runtime_cache=cache))
    y = module(x).cpu()
    seconds = time.perf_counter() - begin
    _started.append((module, cache))
    return Start(seconds, _error(y, expected), cache.statistics())


def save() -> None:
    """Saves the newest engine's cache in a new thread.

    Such a thread has no CUDA context, which TensorRT-RTX needs to serialize and deserialize.
    """
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_started[-1][1].save).result()


def end() -> None:
    """Ends all engines that were started."""
    _started.clear()


@dataclass(frozen=True)
class SharedStart:
    """All engines on one cache, each in a thread of its own, with all of their shapes.

    Attributes:
        final: The cache as it serialized at the end.
        taken: How many different serializations were taken meanwhile.
        rejected: How many of those a new cache rejected.
        partial: One of those that has some of the kernels; empty if none has.
    """

    final: bytes
    taken: int
    rejected: int
    partial: bytes


def start_all(runtime: str, blob: bytes, is_serialized_meanwhile: bool) -> SharedStart:
    """Starts every engine on a new cache that was given the blob.

    Kernels are compiled by the call that needs them (eager).

    Args:
        is_serialized_meanwhile: Whether this thread serializes the cache until all have run.
    """
    cache = RuntimeCache(use_python_runtime=runtime == "Python")
    cache.load_from_stream(io.BytesIO(blob))
    settings = RuntimeSettings("eager", runtime_cache=cache)
    serializations = 0
    is_serializing = is_serialized_meanwhile

    def run(name: str) -> None:
        module = _module(runtime, _device.plan(name), settings)
        for batch in CASES[name].batches:
            x, expected = _device.example(name, batch)
            _error(module(x), expected)
            # Waits for a whole serialization, so that one has some of the kernels.
            enough = serializations + 2
            while is_serializing and serializations < enough:
                time.sleep(0.001)

    def serialized() -> bytes:
        data = io.BytesIO()
        cache.save_to_stream(data)
        return data.getvalue()

    taken: set[bytes] = set()
    names = _device.cases()
    with ThreadPoolExecutor(len(names)) as threads:
        results = [threads.submit(run, name) for name in names]
        try:
            while is_serializing and not all(result.done() for result in results):
                taken.add(serialized())
                serializations += 1
        finally:
            is_serializing = False
        for result in results:
            result.result()
    final = serialized()
    taken -= {b"", final}  # no engine had run yet, or all had
    rejected = sum(not _raw_cache(FIRST)[1].deserialize(data) for data in taken)
    (empty,) = raw_serialized(FIRST, [])
    partial = next((data for data in taken if len(data) > len(empty)), b"")
    return SharedStart(final, len(taken), rejected, partial)


@functools.cache
def _loaded(name: str) -> LoadedEngine:
    plan, _, _ = _device.plan(name)
    return load_engine(memory_of(plan))


def _raw_cache(name: str) -> tuple[RuntimeCache, Any]:
    """Returns an empty cache of the Python runtime, and its `tensorrt_rtx.IRuntimeCache`."""
    loaded = _loaded(name)
    config = loaded.engine.create_runtime_config()
    cache = RuntimeCache(use_python_runtime=True)
    handle: Any = cache._handle
    return cache, handle.ensure_materialized(config, loaded.device, loaded.kind)


@dataclass(frozen=True)
class RawRun:
    """An inference on a new cache that was given blobs.

    Attributes:
        before: The cache as it serialized after the blobs.
        after: The cache as it serialized after the inference.
    """

    before: bytes
    after: bytes

    @property
    def compiled_nothing(self) -> bool:
        """As in `Start`."""
        return len(self.after) == len(self.before)


def raw_run(name: str, blobs: Sequence[bytes], batch: int | None = None) -> RawRun:
    """Runs an engine once on a new cache, into which the blobs were deserialized in turn.

    Kernels for the exact shape are compiled before the inference (eager).
    """
    cache, raw = _raw_cache(name)
    for blob in blobs:
        raw.deserialize(blob)
    before = bytes(raw.serialize())
    settings = RuntimeSettings("eager", runtime_cache=cache)
    x, expected = _device.example(name, batch)
    _error(_module("Python", _device.plan(name), settings)(x), expected)
    return RawRun(before, bytes(raw.serialize()))


def raw_serialized(name: str, blobs: Sequence[bytes], times: int = 1) -> list[bytes]:
    """Returns how a new cache serializes after those blobs, `times` times over."""
    _, raw = _raw_cache(name)
    for blob in blobs:
        raw.deserialize(blob)
    return [bytes(raw.serialize()) for _ in range(times)]
