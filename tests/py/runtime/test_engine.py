"""The C++ engine as Python sees it, on the simulated device."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_tensorrt  # noqa: F401  registers the classes and ops

X = [-1.5, 0.0, 2.0, -3.0]
RELU_OF_X = [0.0, 0.0, 2.0, 0.0]


def make_device() -> Any:
    return torch.classes.tensorrt_simulated.Device()


def make_cache(path: Path) -> Any:
    return torch.classes.tensorrt.RuntimeCacheHandle(str(path))


def make_engine(cache: Any = None, prefix: str = "", kernels: int = 0) -> Any:
    """y = relu(x), of four floats."""
    plan = torch.ops.tensorrt_simulated.relu_plan(prefix, kernels)
    engine = torch.classes.tensorrt.Engine(plan, ["x"], ["y"])
    engine.set_runtime_settings("lazy", "disabled", cache)
    return engine


def make_dynamic_engine(kernels: int = 0) -> Any:
    """y = relu(x), of 1 to 8 rows of 3 floats."""
    plan = torch.ops.tensorrt_simulated.dynamic_relu_plan(
        [1, 3], [4, 3], [8, 3], kernels=kernels
    )
    return torch.classes.tensorrt.Engine(plan, ["x"], ["y"])


def execute(engine: Any, *inputs: torch.Tensor) -> list[torch.Tensor]:
    outputs: list[torch.Tensor] = torch.ops.tensorrt.execute_engine(inputs, engine)
    return outputs


def run(engine: Any) -> None:
    (y,) = execute(engine, torch.tensor(X))
    assert y.tolist() == RELU_OF_X


@pytest.fixture
def device() -> Iterator[Any]:
    device = make_device()
    device.install()
    yield device
    device.uninstall()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.bin"


def test_runs(device: Any) -> None:
    engine = make_engine(kernels=3)
    assert (engine.input_names, engine.output_names) == (["x"], ["y"])
    assert device.counters() == {"compilations": 0, "cache_hits": 0}
    for _ in range(2):
        run(engine)
    assert device.counters() == {"compilations": 3, "cache_hits": 0}
    assert device.calls("IExecutionContext::enqueueV3") == 2


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_runs_with_dynamic_shapes(device: Any, rows: int) -> None:
    x = torch.randn(rows, 3)
    (y,) = execute(make_dynamic_engine(), x)
    assert torch.equal(y, torch.relu(x))


@pytest.mark.parametrize(
    ("strategy", "compilations"), [("lazy", 4), ("eager", 4), ("none", 0)]
)
def test_the_strategy_decides_on_kernels_for_a_shape(
    device: Any, strategy: str, compilations: int
) -> None:
    engine = make_dynamic_engine(kernels=2)
    engine.set_runtime_settings(strategy, "disabled", None)
    for rows in (2, 3, 2):
        execute(engine, torch.zeros(rows, 3))
    device.wait_for_background_compilation()
    assert device.counters()["compilations"] == compilations


def test_settings_by_name_and_by_number(device: Any, path: Path) -> None:
    engine = make_engine()
    assert engine.runtime_settings() == ("lazy", "disabled", None)
    cache = make_cache(path)
    assert engine.set_runtime_settings("eager", "whole_graph_capture", cache)
    assert not engine.set_runtime_settings(1, 1, cache)
    *strategies, same = engine.runtime_settings()
    assert strategies == ["eager", "whole_graph_capture"]
    cache.autosave = False
    assert not same.autosave
    assert engine.set_runtime_settings(2, 0, None)
    assert engine.runtime_settings() == ("none", "disabled", None)


@pytest.mark.parametrize(
    ("specialization", "cuda_graphs", "error"),
    [
        ("fast", 0, r"'fast', expected lazy \(0\), eager \(1\) or none \(2\)"),
        (3, 0, r"3, expected lazy \(0\), eager \(1\) or none \(2\)"),
        (0, "on", r"'on', expected disabled \(0\) or whole_graph_capture \(1\)"),
        (0, -1, r"-1, expected disabled \(0\) or whole_graph_capture \(1\)"),
        (0.5, 0, "a string or an integer, got a Double"),
    ],
)
def test_unknown_settings_change_nothing(
    device: Any, specialization: Any, cuda_graphs: Any, error: str
) -> None:
    engine = make_engine()
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
    ],
    ids=["dtype", "device", "rank", "shape"],
)
def test_a_wrong_input_is_named(device: Any, x: torch.Tensor, got: str) -> None:
    engine = make_dynamic_engine()
    wanted = r"'x' wants a dense Float tensor \[1 to 8, 3\] on cpu, "
    with pytest.raises(RuntimeError, match=wanted + got):
        execute(engine, x)
    assert execute(engine, torch.ones(1, 3))[0].tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("number", [0, 2])
def test_a_wrong_number_of_inputs_is_told(device: Any, number: int) -> None:
    with pytest.raises(RuntimeError, match=rf"1 inputs \('x'\), got {number}"):
        execute(make_engine(), *[torch.zeros(4)] * number)


def test_wants_the_names_of_the_plan(device: Any) -> None:
    plan = torch.ops.tensorrt_simulated.relu_plan()
    with pytest.raises(RuntimeError, match="inputs are 'x', got 'z'"):
        torch.classes.tensorrt.Engine(plan, ["z"], ["y"])
    with pytest.raises(RuntimeError, match="outputs are 'y', got none"):
        torch.classes.tensorrt.Engine(plan, ["x"], [])


def test_wants_a_plan(device: Any) -> None:
    for plan, error in [(torch.zeros(7), "uint8"), (torch.zeros(7).byte(), "7 bytes")]:
        with pytest.raises(RuntimeError, match=error):
            torch.classes.tensorrt.Engine(plan, ["x"], ["y"])


def test_a_failed_inference_is_an_error_and_the_next_one_runs(device: Any) -> None:
    engine = make_engine()
    device.fail("IExecutionContext::enqueueV3", 1)
    with pytest.raises(RuntimeError, match="could not run the engine"):
        run(engine)
    run(engine)


def test_a_cache_of_another_version_costs_a_warning_and_a_cold_start(
    device: Any, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(make_engine(make_cache(path), kernels=2))
    assert capfd.readouterr().err == ""
    device.set_environment(tensorrt_rtx_version="1.7.1.116")
    device.reset_counters()
    run(make_engine(make_cache(path), kernels=2))
    log = capfd.readouterr().err
    assert "WARNING" in log and f"'{path}'" in log
    assert "another TensorRT-RTX version" in log
    assert device.counters() == {"compilations": 2, "cache_hits": 0}


def test_a_cache_that_can_not_be_made_costs_a_warning(
    device: Any, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    device.fail("IRuntimeConfig::createRuntimeCache")
    run(make_engine(make_cache(path), kernels=2))
    assert f"could not create a runtime cache for '{path}'" in capfd.readouterr().err
    assert not path.exists()


def unpickled(engine: Any) -> Any:
    return pickle.loads(pickle.dumps(engine))


@pytest.mark.parametrize("duplicate", [unpickled, copy.deepcopy])
def test_copies_run_with_the_same_settings(
    device: Any, path: Path, duplicate: Callable[[Any], Any]
) -> None:
    engine = make_engine(make_cache(path), kernels=2)
    engine.set_runtime_settings("none", "whole_graph_capture", make_cache(path))
    run(engine)
    device.reset_counters()
    other = duplicate(engine)
    run(other)
    assert (other.input_names, other.output_names) == (["x"], ["y"])
    *strategies, cache = other.runtime_settings()
    assert strategies == ["none", "whole_graph_capture"]
    assert cache.path == str(path)
    # Its kernels came with it: there is no file before an engine ends.
    assert not path.exists()
    assert device.counters() == {"compilations": 0, "cache_hits": 2}


# What follows is for functions that run in a process of their own, which has this state.

child_device: Any = None
child_engine: Any = None


def begin_child(mode: str) -> None:
    global child_device
    child_device = make_device()
    child_device.set_deserialize_mode(mode)
    child_device.install()


def child_runs(engine: bytes) -> dict[str, int]:
    """Runs a pickled engine, and answers the counters of the simulated device."""
    run(pickle.loads(engine))
    counters: dict[str, int] = child_device.counters()
    return counters


def child_starts(path: Path, *prefixes: str) -> dict[str, int]:
    """Runs an engine for each prefix, five kernels each, on one cache; answers the counters."""
    global child_engine
    child_device.reset_counters()
    cache = make_cache(path)
    for prefix in prefixes:
        child_engine = make_engine(cache, prefix, 5)
        run(child_engine)
    counters: dict[str, int] = child_device.counters()
    return counters


def child_saves() -> int:
    written: int = child_engine.runtime_settings()[2].save()
    return written


def child_ends_its_engine() -> None:
    global child_engine
    child_engine = None


class Child:
    """A process with a simulated device of its own."""

    def __init__(self, mode: str = "adds") -> None:
        self._pool = ProcessPoolExecutor(
            max_workers=1,
            # fork() would copy the simulated device and torch's threads.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=begin_child,
            initargs=(mode,),
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(function, *arguments).result(timeout=120)


def test_a_pickled_engine_runs_in_another_process(device: Any, path: Path) -> None:
    cold = pickle.dumps(make_engine(kernels=3))
    engine = make_engine(make_cache(path), kernels=3)
    run(engine)
    warm = pickle.dumps(engine)
    with Child() as child:
        assert child(child_runs, cold) == {"compilations": 3, "cache_hits": 0}
        assert child(child_runs, warm) == {"compilations": 3, "cache_hits": 3}


def test_the_second_process_compiles_nothing(path: Path) -> None:
    with Child() as first, Child() as second:
        assert first(child_starts, path, "a") == {"compilations": 5, "cache_hits": 0}
        first(child_ends_its_engine)
        assert second(child_starts, path, "a") == {"compilations": 0, "cache_hits": 5}


def test_processes_that_save_in_turn_lose_nothing(path: Path) -> None:
    with Child() as first, Child() as second, Child() as third:
        # Both start before there is a file, so neither has the other's kernels.
        for child, prefix in ((first, "a"), (second, "b")):
            assert child(child_starts, path, prefix)["compilations"] == 5
        for child in (first, second):
            assert child(child_saves) > 0
        assert third(child_starts, path, "a", "b") == {
            "compilations": 0,
            "cache_hits": 10,
        }


def test_where_kernels_can_not_be_merged_the_last_save_stays(path: Path) -> None:
    with Child("replaces") as first, Child("replaces") as second:
        first(child_starts, path, "a")
        second(child_starts, path, "b")
        for child in (first, second):
            assert child(child_saves) > 0
        assert first(child_starts, path, "b")["compilations"] == 0
