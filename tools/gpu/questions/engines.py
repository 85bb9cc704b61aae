"""What a worker does with engines: by our runtimes, and straight on TensorRT-RTX's interface."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt
import torch

import torch_tensorrt.logging
from tools.gpu.plans.models import relative_error
from tools.gpu.questions.devices import Device, Plan
from torch_tensorrt.dynamo.runtime import TorchTensorRTModule
from torch_tensorrt.runtime import RuntimeCache, RuntimeSettings
from torch_tensorrt.runtime._engine.engine_loader import load_engine
from torch_tensorrt.runtime._engine.engine_stream import EngineStream

RUNTIMES = ["C++", "Python"]

_state: dict[str, Any] = {"modules": []}


def begin(device: Device, log_level: str) -> None:
    """Makes this process ready to load plans."""
    torch_tensorrt.logging.set_level(log_level)
    device.install()
    _state["device"] = device


def current_device() -> Device:
    device: Device = _state["device"]
    return device


@dataclass(frozen=True)
class Start:
    """The first two inferences of an engine.

    Attributes:
        seconds: From the plan's bytes in memory to the first result on the host.
        next_seconds: The inference after it, likewise.
        error: The worst relative error of both results (models.relative_error).
        loaded: Bytes of the cache before the first inference: the file's, or an empty cache's if
            there was none; 0 if the engine had no cache.
        cached: Bytes of the cache after it.
        compilations: Kernels that were compiled; None where that can't be known.
    """

    seconds: float
    next_seconds: float
    error: float
    loaded: int
    cached: int
    compilations: int | None

    @property
    def compiled_nothing(self) -> bool:
        """TensorRT-RTX adds to the attached cache each kernel that it compiles."""
        return self.cached == self.loaded and not self.compilations


def _module(
    runtime: str, plan: Plan, settings: RuntimeSettings | None = None
) -> TorchTensorRTModule:
    return TorchTensorRTModule(
        plan.engine,
        plan.inputs,
        plan.outputs,
        runtime_settings=settings,
        use_python_runtime=runtime == "Python",
    )


def load(runtime: str, name: str) -> None:
    """Deserializes the plan, and runs nothing."""
    _module(runtime, current_device().plan(name)).setup_engine()


def replay(runtime: str, name: str) -> float:
    """The relative error of a replayed CUDA graph, whose input differs from the captured one."""
    x, expected = current_device().example(name, None)
    module = _module(runtime, current_device().plan(name))
    held = torch.zeros_like(x)
    warm_up = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        for _ in range(3):
            module(held)
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = module(held)
    held.copy_(x)
    graph.replay()
    current_device().synchronize()
    return relative_error(y, expected)


def start(
    runtime: str,
    name: str,
    cache_path: Path | None,
    batch: int | None = None,
    strategy: str = "lazy",
) -> Start:
    """Starts an engine with a cache of its own, loaded from that path, and keeps both."""
    device = current_device()
    plan = device.plan(name)
    x, expected = device.example(name, batch)
    device.synchronize()
    compilations = device.compilations()
    use_python_runtime = runtime == "Python"
    begin = time.perf_counter()
    cache = None
    if cache_path is not None:
        cache = RuntimeCache(cache_path, use_python_runtime=use_python_runtime)
    settings = RuntimeSettings(
        dynamic_shapes_kernel_specialization_strategy=strategy, runtime_cache=cache
    )
    module = _module(runtime, plan, settings)
    y = module(x).cpu()
    first = time.perf_counter()
    y2 = module(x).cpu()
    second = time.perf_counter()
    _state["modules"].append((module, cache))
    loaded = 0
    if cache_path is not None:
        loaded = (
            cache_path.stat().st_size
            if cache_path.exists()
            else len(raw_serialized(name, [])[0])
        )
    return Start(
        first - begin,
        second - first,
        max(relative_error(y, expected), relative_error(y2, expected)),
        loaded,
        cache._handle.serialize().numel() if cache is not None else 0,
        _since(compilations),
    )


@dataclass(frozen=True)
class SharedStart:
    """All engines on one cache, each in a thread of its own, with all of their shapes.

    Attributes:
        is_right: Whether each result is within its bound.
        final: The cache as it serialized at the end.
        compilations: As in `Start`.
        taken: How many different serializations were taken meanwhile.
        rejected: How many of those a new cache rejected.
        partial: One that was taken when some of the kernels were there; None if there is none.
    """

    is_right: bool
    final: bytes
    compilations: int | None
    taken: int
    rejected: int
    partial: bytes | None


def start_all(
    runtime: str, blob: bytes = b"", is_serialized_meanwhile: bool = False
) -> SharedStart:
    """Starts every engine on a new cache that was given the blob.

    Kernels are compiled by the call that needs them (eager).

    Args:
        is_serialized_meanwhile: Whether this thread serializes the cache until all have run.
    """
    device = current_device()
    cache = RuntimeCache(use_python_runtime=runtime == "Python")
    cache.load_from_stream(io.BytesIO(blob))
    settings = RuntimeSettings(
        dynamic_shapes_kernel_specialization_strategy="eager", runtime_cache=cache
    )

    serializations = 0
    is_serializing = is_serialized_meanwhile

    def wait_for_serialization() -> None:
        """A whole one, so that one of those between two shapes has some of the kernels."""
        enough = serializations + 2
        while is_serializing and serializations < enough:
            time.sleep(0.001)

    def run(name: str) -> bool:
        plan = device.plan(name)
        module = _module(runtime, plan, settings)
        errors = []
        for batch in plan.case.batch_sizes:
            x, expected = device.example(name, batch)
            errors.append(relative_error(module(x).cpu(), expected))
            wait_for_serialization()
        _state["modules"].append((module, cache))
        return max(errors) <= plan.case.bound

    def serialized() -> bytes:
        data = io.BytesIO()
        cache.save_to_stream(data)
        return data.getvalue()

    compilations = device.compilations()
    taken: set[bytes] = set()
    names = device.cases()
    with ThreadPoolExecutor(len(names)) as threads:
        results = [threads.submit(run, name) for name in names]
        try:
            while is_serializing and not all(result.done() for result in results):
                taken.add(serialized())
                serializations += 1
        finally:
            is_serializing = False
        is_right = all(result.result() for result in results)
    final = serialized()
    taken -= {b"", final}  # no engine had run yet, or all had
    raw = raw_engine(names[0])
    empty = raw.new_cache().serialize()
    return SharedStart(
        is_right,
        final,
        _since(compilations),
        len(taken),
        sum(not raw.new_cache().deserialize(data) for data in taken),
        next((data for data in taken if len(data) > len(bytes(empty))), None),
    )


def save() -> int:
    """Saves the newest engine's cache, as `RuntimeCache.save` does, in a new thread.

    Such a thread has no CUDA context, which TensorRT-RTX needs to serialize and deserialize.
    """
    _, cache = _state["modules"][-1]
    with ThreadPoolExecutor(1) as thread:
        written: int = thread.submit(cache.save).result()
    return written


def end() -> None:
    """Lets all engines go."""
    _state["modules"].clear()


def _since(compilations: int | None) -> int | None:
    now = current_device().compilations()
    return None if now is None or compilations is None else now - compilations


class RawEngine:
    """An engine on TensorRT-RTX's interface, past our caches and engines."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._loaded = load_engine(memoryview(plan.engine.numpy().tobytes()))

    def new_cache(self) -> Any:
        """An empty `tensorrt_rtx.IRuntimeCache`."""
        cache = self._new_config().create_runtime_cache()
        if cache is None:
            raise RuntimeError("createRuntimeCache failed")
        return cache

    def run(self, cache: Any, batch: int | None = None) -> float:
        """One inference of a new context on that cache; its seconds, up to the result.

        Kernels for the very shape are compiled before it.
        """
        device = current_device()
        x, expected = device.example(self._plan.case.name, batch)
        y = torch.empty_like(expected)
        device.synchronize()
        begin = time.perf_counter()
        config = self._new_config()
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        if not config.set_runtime_cache(cache):
            raise RuntimeError("setRuntimeCache failed")
        context = self._loaded.engine.create_execution_context(runtime_config=config)
        if context is None:
            raise RuntimeError("createExecutionContext failed")
        (x_name,), (y_name,) = self._plan.inputs, self._plan.outputs
        stream = EngineStream(self._loaded.device)
        ok = (
            context.set_input_shape(x_name, tuple(x.shape))
            and context.set_tensor_address(x_name, x.data_ptr())
            and context.set_tensor_address(y_name, y.data_ptr())
            and context.execute_async_v3(stream.begin())
        )
        stream.end()
        device.synchronize()
        seconds = time.perf_counter() - begin
        del context  # before what it uses
        if not ok:
            raise RuntimeError("The inference failed")
        error = relative_error(y, expected)
        if not error <= self._plan.case.bound:
            raise RuntimeError(f"The result is wrong: relative error {error:.2g}")
        return seconds

    def _new_config(self) -> Any:
        config = self._loaded.engine.create_runtime_config()
        if config is None:
            raise RuntimeError("createRuntimeConfig failed")
        return config


def raw_engine(name: str) -> RawEngine:
    """The engine of that plan, the same one each time."""
    engines: dict[str, RawEngine] = _state.setdefault("engines", {})
    if name not in engines:
        engines[name] = RawEngine(current_device().plan(name))
    return engines[name]


@dataclass(frozen=True)
class RawRun:
    """An inference on a new cache that was given blobs.

    Attributes:
        accepted: What `deserialize` answered to each blob.
        before: The cache as it serialized then.
        after: As it serialized after the inference.
        seconds: Of the inference.
        compilations: As in `Start`.
    """

    accepted: list[bool]
    before: bytes
    after: bytes
    seconds: float
    compilations: int | None

    @property
    def compiled_nothing(self) -> bool:
        """As in `Start`."""
        return len(self.after) == len(self.before) and not self.compilations


def raw_run(name: str, blobs: Sequence[bytes], batch: int | None = None) -> RawRun:
    """Runs that plan's engine on a new cache, into which the blobs were deserialized in turn."""
    engine = raw_engine(name)
    cache = engine.new_cache()
    accepted = [cache.deserialize(blob) for blob in blobs]
    before = bytes(cache.serialize())
    compilations = current_device().compilations()
    seconds = engine.run(cache, batch)
    return RawRun(
        accepted, before, bytes(cache.serialize()), seconds, _since(compilations)
    )


def raw_serialized(name: str, blobs: Sequence[bytes], times: int = 1) -> list[bytes]:
    """How a new cache of that plan's engine serializes after those blobs, `times` times over."""
    cache = raw_engine(name).new_cache()
    for blob in blobs:
        cache.deserialize(blob)
    return [bytes(cache.serialize()) for _ in range(times)]
