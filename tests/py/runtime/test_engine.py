"""The engines of both runtimes, on the simulated device."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.py.runtime.runtime_cache_testing import Log, handle_of, to_tensor
from tests.util.simulation.simulated_device import (
    dynamic_relu_plan,
    installed_device,
    relu_plan,
)
from torch_tensorrt.runtime._engine.trt_engine import TRTEngine

X = [-1.5, 0.0, 2.0, -3.0]
RELU_OF_X = [0.0, 0.0, 2.0, 0.0]


def engine_of(
    runtime: str, plan: torch.Tensor, inputs: list[str], outputs: list[str]
) -> Any:
    if runtime == "cpp":
        return torch.classes.tensorrt.Engine(plan, inputs, outputs)
    return TRTEngine(plan, inputs, outputs)


def make_engine(
    runtime: str, cache: Any = None, prefix: str = "", kernels: int = 0
) -> Any:
    """y = relu(x) on four floats."""
    plan = to_tensor(relu_plan(prefix, kernels))
    engine = engine_of(runtime, plan, ["x"], ["y"])
    engine.set_runtime_settings("lazy", "disabled", cache)
    return engine


def make_dynamic_engine(runtime: str, kernels: int = 0) -> Any:
    """y = relu(x) on 1 to 8 rows of 3 floats."""
    plan = dynamic_relu_plan([1, 3], [4, 3], [8, 3], kernels=kernels)
    return engine_of(runtime, to_tensor(plan), ["x"], ["y"])


def execute(engine: Any, *inputs: torch.Tensor) -> list[torch.Tensor]:
    if isinstance(engine, TRTEngine):
        return engine.execute(inputs)
    outputs: list[torch.Tensor] = torch.ops.tensorrt.execute_engine(inputs, engine)
    return outputs


def run(engine: Any) -> None:
    (y,) = execute(engine, torch.tensor(X))
    assert y.tolist() == RELU_OF_X


@pytest.fixture
def device() -> Iterator[Any]:
    with installed_device() as device:
        yield device


def test_runs(runtime: str, device: Any) -> None:
    engine = make_engine(runtime, kernels=3)
    assert (engine.input_names, engine.output_names) == (["x"], ["y"])
    assert device.counters() == {"compilations": 0, "cache_hits": 0}
    for _ in range(2):
        run(engine)
    assert device.counters() == {"compilations": 3, "cache_hits": 0}
    assert device.calls("IExecutionContext::enqueueV3") == 2


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_runs_with_dynamic_shapes(runtime: str, device: Any, rows: int) -> None:
    x = torch.randn(rows, 3)
    (y,) = execute(make_dynamic_engine(runtime), x)
    assert torch.equal(y, torch.relu(x))


@pytest.mark.parametrize(
    ("strategy", "compilations"), [("lazy", 4), ("eager", 4), ("none", 0)]
)
def test_the_strategy_decides_on_kernels_for_a_shape(
    runtime: str, device: Any, strategy: str, compilations: int
) -> None:
    engine = make_dynamic_engine(runtime, kernels=2)
    engine.set_runtime_settings(strategy, "disabled", None)
    for rows in (2, 3, 2):
        execute(engine, torch.zeros(rows, 3))
    device.wait_for_background_compilation()
    assert device.counters()["compilations"] == compilations


def test_settings(runtime: str, device: Any, path: Path) -> None:
    engine = make_engine(runtime)
    assert engine.runtime_settings() == ("lazy", "disabled", None)
    cache = handle_of(runtime, path)
    assert engine.set_runtime_settings("eager", "whole_graph_capture", cache)
    assert not engine.set_runtime_settings("eager", "whole_graph_capture", cache)
    *strategies, same = engine.runtime_settings()
    assert strategies == ["eager", "whole_graph_capture"]
    same.deserialize(to_tensor(b"kernels"))
    assert cache.has_cache()
    assert engine.set_runtime_settings("none", "disabled", None)
    assert engine.runtime_settings() == ("none", "disabled", None)


@pytest.mark.parametrize(
    ("specialization", "cuda_graphs", "error"),
    [
        ("fast", "disabled", "'fast', expected "),
        ("lazy", "on", "'on', expected "),
        ("1", "disabled", "'1', expected "),
        (1, "disabled", "expected|Expected"),
    ],
)
def test_unknown_settings_change_nothing(
    device: Any, specialization: Any, cuda_graphs: Any, error: str
) -> None:
    """In the Python runtime, RuntimeSettings does this check."""
    engine = make_engine("cpp")
    with pytest.raises(RuntimeError, match=error):
        engine.set_runtime_settings(specialization, cuda_graphs, None)
    assert engine.runtime_settings() == ("lazy", "disabled", None)


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), "got Double"),
        (torch.zeros(2, 3, device="meta"), "got meta"),
        (torch.zeros(3), r"got \[3\]"),
        (torch.zeros(9, 3), r"got \[9, 3\]"),
        (torch.zeros(2, 3).to_sparse(), "got Sparse"),
    ],
    ids=["dtype", "device", "rank", "shape", "layout"],
)
def test_a_wrong_input_is_named(
    runtime: str, device: Any, x: torch.Tensor, got: str
) -> None:
    engine = make_dynamic_engine(runtime)
    wanted = r"'x' must be a dense Float tensor \[1 to 8, 3\] on cpu, "
    with pytest.raises(RuntimeError, match=wanted + got):
        execute(engine, x)
    assert execute(engine, torch.ones(1, 3))[0].tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("number", [0, 2])
def test_a_wrong_number_of_inputs_is_told(
    runtime: str, device: Any, number: int
) -> None:
    with pytest.raises(RuntimeError, match=rf"1 inputs \('x'\), got {number}"):
        execute(make_engine(runtime), *[torch.zeros(4)] * number)


def test_wants_the_names_of_the_plan(runtime: str, device: Any) -> None:
    plan = to_tensor(relu_plan())
    with pytest.raises(RuntimeError, match="inputs are 'x', got 'z'"):
        engine_of(runtime, plan, ["z"], ["y"])
    with pytest.raises(RuntimeError, match="outputs are 'y', got none"):
        engine_of(runtime, plan, ["x"], [])


def test_wants_a_plan(runtime: str, device: Any) -> None:
    for plan, error in [(torch.zeros(7), "uint8"), (torch.zeros(7).byte(), "7 bytes")]:
        with pytest.raises(RuntimeError, match=error):
            engine_of(runtime, plan, ["x"], ["y"])


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("createInferRuntime", "could not be started"),
        ("IRuntime::deserializeCudaEngine", "could not load a plan"),
        ("ICudaEngine::createRuntimeConfig", "create the runtime config"),
        ("ICudaEngine::createExecutionContext", "create an execution context"),
        ("IExecutionContext::setInputShape", r"shape \[4\] of the input 'x'"),
        ("IExecutionContext::setTensorAddress", "refused the memory of 'x'"),
        ("IExecutionContext::inferShapes", "could not infer the shapes"),
        ("IExecutionContext::enqueueV3", "could not run the engine"),
    ],
)
def test_what_fails_is_an_error_and_works_the_next_time(
    runtime: str, device: Any, call: str, error: str
) -> None:
    device.fail(call, 1)
    engine = None
    with pytest.raises(RuntimeError, match=error):
        engine = make_engine(runtime)
        run(engine)
    run(make_engine(runtime) if engine is None else engine)


def test_an_engine_that_can_not_be_serialized_can_not_be_pickled(device: Any) -> None:
    engine = make_engine("cpp")
    device.fail("ICudaEngine::serialize")
    with pytest.raises(RuntimeError, match="could not serialize the engine"):
        pickle.dumps(engine)
    run(engine)


def test_an_error_that_is_kept_keeps_no_context_of_the_engine(
    runtime: str, device: Any, path: Path
) -> None:
    engine = make_dynamic_engine(runtime, kernels=1)
    cache = handle_of(runtime, path)
    engine.set_runtime_settings("lazy", "disabled", cache)
    device.set_compile_time(0.3)
    execute(engine, torch.zeros(2, 3))
    deadline = time.monotonic() + 120
    while device.counters()["compilations"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    device.fail("IExecutionContext::setTensorAddress", 1)
    with pytest.raises(RuntimeError) as error:
        execute(engine, torch.zeros(2, 3))
    # The kernel compiles until the context is destroyed.
    assert engine.set_runtime_settings("eager", "disabled", None)
    cache.save()
    device.reset_counters()
    engine.set_runtime_settings("eager", "disabled", handle_of(runtime, path))
    execute(engine, torch.zeros(2, 3))
    assert device.counters() == {"compilations": 0, "cache_hits": 1}
    del engine, error


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("IRuntimeConfig::createRuntimeCache", "not create a runtime cache for '{}'"),
        ("IRuntimeConfig::setRuntimeCache", "refused the runtime cache '{}'"),
        (
            "IRuntimeConfig::setCudaGraphStrategy",
            "refused the CUDA graph strategy whole_graph_capture; the engine runs without",
        ),
    ],
)
def test_settings_that_can_not_be_had_cost_a_warning(
    runtime: str, device: Any, path: Path, log: Log, call: str, text: str
) -> None:
    device.fail(call)
    engine = make_engine(runtime, kernels=2)
    engine.set_runtime_settings("lazy", "whole_graph_capture", handle_of(runtime, path))
    run(engine)
    (warning,) = [line for line in log.lines() if line.startswith("WARNING")]
    assert text.format(path) in warning


def test_a_cache_of_another_version_costs_a_warning_and_a_cold_start(
    runtime: str, device: Any, path: Path, log: Log
) -> None:
    cache = handle_of(runtime, path)
    run(make_engine(runtime, cache, kernels=2))
    cache.save()
    assert log.lines() == []
    device.set_environment(tensorrt_rtx_version="99.0.0.0")
    device.reset_counters()
    run(make_engine(runtime, handle_of(runtime, path), kernels=2))
    (warning,) = [line for line in log.lines() if line.startswith("WARNING")]
    assert f"'{path}'" in warning and "another TensorRT-RTX version" in warning
    assert device.counters() == {"compilations": 2, "cache_hits": 0}


def unpickled(engine: Any) -> Any:
    return pickle.loads(pickle.dumps(engine))


@pytest.mark.parametrize("duplicate", [unpickled, copy.deepcopy])
def test_copies_run_with_the_same_settings(
    device: Any, path: Path, duplicate: Callable[[Any], Any]
) -> None:
    engine = make_engine("cpp", kernels=2)
    handle = handle_of("cpp", path)
    handle.checkpoints = False
    engine.set_runtime_settings("none", "whole_graph_capture", handle)
    run(engine)
    device.reset_counters()
    other = duplicate(engine)
    run(other)
    assert (other.input_names, other.output_names) == (["x"], ["y"])
    *strategies, cache = other.runtime_settings()
    assert strategies == ["none", "whole_graph_capture"]
    assert cache.path == str(path)
    # The copy includes the kernels: no engine has ended yet, so there is no file.
    assert not path.exists()
    assert device.counters() == {"compilations": 0, "cache_hits": 2}


# The following functions run in another process, which has this state.

child_device: Any = None
_child_stack = ExitStack()


def begin_child() -> None:
    global child_device
    child_device = _child_stack.enter_context(installed_device())


def child_runs(engine: bytes) -> dict[str, int]:
    """Runs a pickled engine. Returns the counters of the simulated device."""
    run(pickle.loads(engine))
    counters: dict[str, int] = child_device.counters()
    return counters


class Child:
    """A process with its own simulated device."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(
            max_workers=1,
            # fork() would copy the simulated device and torch's threads.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=begin_child,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(function, *arguments).result(timeout=120)


def test_a_pickled_engine_runs_in_another_process(device: Any, path: Path) -> None:
    cold = pickle.dumps(make_engine("cpp", kernels=3))
    engine = make_engine("cpp", handle_of("cpp", path), kernels=3)
    run(engine)
    warm = pickle.dumps(engine)
    with Child() as child:
        assert child(child_runs, cold) == {"compilations": 3, "cache_hits": 0}
        assert child(child_runs, warm) == {"compilations": 3, "cache_hits": 3}
