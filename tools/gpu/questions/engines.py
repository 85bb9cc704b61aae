"""What a worker does with engines: on our runtimes, and on TensorRT-RTX's own interface."""

from __future__ import annotations

import faulthandler
import io
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import tensorrt_rtx as trt
import torch

from tools.gpu.plans import CASES, FIRST, relative_error
from tools.gpu.questions.devices import Device, Plan
from torch_tensorrt.dynamo.runtime import TorchTensorRTModule
from torch_tensorrt.runtime import RuntimeCache, RuntimeSettings
from torch_tensorrt.runtime._engine.engine_loader import LoadedEngine, load_engine
from torch_tensorrt.runtime._engine.engine_stream import EngineStream

RUNTIMES = ["C++", "Python"]

Result = TypeVar("Result")

_device: Device
# The engines that were started, with their caches.
_started: list[tuple[TorchTensorRTModule, RuntimeCache]] = []


def begin(device: Device, log: Path) -> None:
    """Makes this process ready to load plans; what it prints goes to the log."""
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


def load(runtime: str, name: str) -> None:
    """Deserializes the plan and runs nothing."""
    _module(runtime, _device.plan(name)).setup_engine()


def replay(runtime: str, name: str) -> float:
    """Returns the relative error of a CUDA graph that is replayed with a new input."""
    x, expected = _device.example(name, None)
    module = _module(runtime, _device.plan(name))
    held = torch.zeros_like(x)
    warm_up = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(warm_up):
        for _ in range(3):
            module(held)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = module(held)
    held.copy_(x)
    graph.replay()
    return _error(y, expected)


@dataclass(frozen=True)
class Start:
    """The first inference of an engine.

    Attributes:
        seconds: From the plan's bytes in memory to the result on the host.
        error: The relative error of the result.
        before: Bytes of the cache before it: those of the file, or of an empty cache.
        after: Bytes of the cache after it.
    """

    seconds: float
    error: float
    before: int
    after: int

    @property
    def compiled_nothing(self) -> bool:
        """TensorRT-RTX adds to the cache each kernel that it compiles."""
        return self.after == self.before


def start(runtime: str, name: str, path: Path, batch: int | None = None) -> Start:
    """Starts an engine on a cache of its own for that path. Both live on."""
    plan = _device.plan(name)
    x, expected = _device.example(name, batch)
    before = path.stat().st_size if path.exists() else 0
    begin = time.perf_counter()
    cache = RuntimeCache(path, use_python_runtime=runtime == "Python")
    module = _module(runtime, plan, RuntimeSettings(runtime_cache=cache))
    y = module(x).cpu()
    seconds = time.perf_counter() - begin
    _started.append((module, cache))
    after = cache._handle.serialize().numel()
    before = before or len(raw_serialized(name, [])[0])
    return Start(seconds, _error(y, expected), before, after)


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
    settings = RuntimeSettings(
        dynamic_shapes_kernel_specialization_strategy="eager", runtime_cache=cache
    )
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
        _started.append((module, cache))

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
    rejected = [data for data in taken if not _new_cache(FIRST).deserialize(data)]
    (empty,) = raw_serialized(FIRST, [])
    partial = next((data for data in taken if len(data) > len(empty)), b"")
    return SharedStart(final, len(taken), len(rejected), partial)


@cache
def _loaded(name: str) -> LoadedEngine:
    return load_engine(memoryview(_device.plan(name)[0].numpy().tobytes()))


def _made(result: Any) -> Any:
    """Returns what a call of TensorRT-RTX returned, unless that means that it failed."""
    if not result:
        raise RuntimeError("a call of TensorRT-RTX failed")
    return result


def _new_cache(name: str) -> Any:
    """Returns an empty `tensorrt_rtx.IRuntimeCache`."""
    config = _made(_loaded(name).engine.create_runtime_config())
    return _made(config.create_runtime_cache())


@dataclass(frozen=True)
class RawRun:
    """An inference on a new cache that was given blobs.

    Attributes:
        accepted: What `deserialize` returned for each blob.
        before: The cache as it serialized after the blobs.
        after: The cache as it serialized after the inference.
        seconds: Of the inference.
    """

    accepted: list[bool]
    before: bytes
    after: bytes
    seconds: float

    @property
    def compiled_nothing(self) -> bool:
        """As in `Start`."""
        return len(self.after) == len(self.before)


def raw_run(name: str, blobs: Sequence[bytes], batch: int | None = None) -> RawRun:
    """Runs an engine once on a new cache, into which the blobs were deserialized in turn.

    Kernels for the very shape are compiled before the inference (eager).
    """
    cache = _new_cache(name)
    accepted = [cache.deserialize(blob) for blob in blobs]
    before = bytes(cache.serialize())
    x, expected = _device.example(name, batch)
    y = torch.empty_like(expected, device=x.device)
    _, (x_name,), (y_name,) = _device.plan(name)
    loaded = _loaded(name)
    begin = time.perf_counter()
    config = _made(loaded.engine.create_runtime_config())
    config.dynamic_shapes_kernel_specialization_strategy = (
        trt.DynamicShapesKernelSpecializationStrategy.EAGER
    )
    _made(config.set_runtime_cache(cache))
    context = _made(loaded.engine.create_execution_context(runtime_config=config))
    stream = EngineStream(loaded.device)
    _made(context.set_input_shape(x_name, tuple(x.shape)))
    _made(context.set_tensor_address(x_name, x.data_ptr()))
    _made(context.set_tensor_address(y_name, y.data_ptr()))
    _made(context.execute_async_v3(stream.begin()))
    stream.end()
    y = y.cpu()
    seconds = time.perf_counter() - begin
    del context  # before what it uses
    _error(y, expected)
    return RawRun(accepted, before, bytes(cache.serialize()), seconds)


def raw_serialized(name: str, blobs: Sequence[bytes], times: int = 1) -> list[bytes]:
    """Returns how a new cache serializes after those blobs, `times` times over."""
    cache = _new_cache(name)
    for blob in blobs:
        cache.deserialize(blob)
    return [bytes(cache.serialize()) for _ in range(times)]
