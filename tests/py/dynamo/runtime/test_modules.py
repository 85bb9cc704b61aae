"""The torch modules of both runtimes, on the simulated device."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.py.runtime.runtime_testing import DEADLINE, run_interpreter
from tests.util.simulation.simulated_device import (
    dynamic_relu_plan,
    installed_device,
    relu_plan,
)
from torch_tensorrt.dynamo.runtime import PythonTorchTensorRTModule, TorchTensorRTModule
from torch_tensorrt.runtime import RuntimeCache, RuntimeSettings
from torch_tensorrt.runtime._engine.engine_module import EngineModule

X = torch.tensor([-1.5, 0.0, 2.0, -3.0])

MakeModule = Callable[..., EngineModule]


@pytest.fixture
def device() -> Iterator[Any]:
    with installed_device() as device:
        yield device


@pytest.fixture
def make(runtime: str, device: Any) -> MakeModule:
    """Makes modules of the runtime under test. The default plan has two kernels."""

    def make(plan: bytes | None = None, *names: list[str], **options: Any) -> Any:
        if plan is None:
            plan = relu_plan(kernels=2)
        kind: Any = PythonTorchTensorRTModule
        if runtime == "cpp":
            kind = partial(TorchTensorRTModule, use_python_runtime=False)
        return kind(plan, *(names or (["x"], ["y"])), **options)

    return make


@pytest.fixture
def make_cache(runtime: str) -> Callable[..., RuntimeCache]:
    return partial(RuntimeCache, use_python_runtime=runtime == "python")


def run(module: torch.nn.Module) -> None:
    assert torch.equal(module(X), torch.relu(X))


def cache_of(module: EngineModule) -> RuntimeCache:
    cache = module.runtime_settings.runtime_cache
    assert isinstance(cache, RuntimeCache)
    return cache


def kernels_in(path: Path, device: Any, make: MakeModule) -> int:
    """The number of the default plan's kernels that the file holds."""
    device.reset_counters()
    run(make(runtime_settings=RuntimeSettings(runtime_cache=path)))
    hits: int = device.counters()["cache_hits"]
    return hits


def test_says_which_runtime_it_is(make: MakeModule, runtime: str) -> None:
    assert make().is_cpp_runtime() == (runtime == "cpp")


def test_runs(make: MakeModule, device: Any) -> None:
    module = make()
    run(module)
    run(module)
    assert device.calls("IExecutionContext::enqueueV3") == 2
    assert device.counters()["compilations"] == 2


def test_several_outputs_are_a_tuple_in_the_order_asked_for(make: MakeModule) -> None:
    module = make(relu_plan(pairs=3), ["x", "x1", "x2"], ["y2", "y", "y1"])
    outputs = module(X, X + 1, X + 2)
    assert isinstance(outputs, tuple)
    for output, x in zip(outputs, (X + 2, X, X + 1), strict=True):
        assert torch.equal(output, torch.relu(x))


def test_takes_inputs_by_name(make: MakeModule) -> None:
    module = make(relu_plan(pairs=2), ["x", "x1"], ["y", "y1"])
    for outputs in (module(x1=X + 1, x=X), module(X, x1=X + 1)):
        assert torch.equal(outputs[0], torch.relu(X))
        assert torch.equal(outputs[1], torch.relu(X + 1))


@pytest.mark.parametrize(
    ("positional", "named"), [(0, ["x"]), (1, ["x"]), (1, ["z"]), (2, ["x1"])]
)
def test_wrong_names_of_inputs_are_told(
    make: MakeModule, positional: int, named: list[str]
) -> None:
    module = make(relu_plan(pairs=2), ["x", "x1"], ["y", "y1"])
    got = rf"\['x', 'x1'\], got {positional} by position and \['{named[0]}'\] by name"
    with pytest.raises(TypeError, match=got):
        module(*[X] * positional, **dict.fromkeys(named, X))


def test_a_wrong_input_is_named(make: MakeModule) -> None:
    with pytest.raises(
        RuntimeError, match=r"'x' must be a dense Float tensor \[4\] on"
    ):
        make()(X.double())


def test_computes_no_gradients(make: MakeModule) -> None:
    y = make()(X.clone().requires_grad_())
    assert not y.requires_grad


def test_the_engine_is_loaded_once_and_on_first_use(
    make: MakeModule, device: Any
) -> None:
    module = make()
    assert device.calls("createInferRuntime") == 0
    module.setup_engine()
    assert device.calls("createInferRuntime") == 1
    module.setup_engine()
    run(module)
    assert device.calls("createInferRuntime") == 1


def test_threads_that_run_it_first_load_it_once(make: MakeModule, device: Any) -> None:
    module = make()
    barrier = threading.Barrier(8)
    right: list[bool] = []

    def infer() -> None:
        barrier.wait(DEADLINE)
        for _ in range(20):
            right.append(torch.equal(module(X), torch.relu(X)))

    threads = [threading.Thread(target=infer) for _ in range(8)]
    for thread in threads:
        thread.start()
    for i in range(20):
        strategy = ("lazy", "eager", "none")[i % 3]
        module.runtime_settings = RuntimeSettings(strategy)
    for thread in threads:
        thread.join(DEADLINE)
    assert right == [True] * 160
    assert device.calls("createInferRuntime") == 1


@pytest.mark.parametrize(
    "convert",
    [bytes, bytearray, memoryview, lambda plan: torch.tensor(list(plan)).byte()],
    ids=["bytes", "bytearray", "memoryview", "tensor"],
)
def test_takes_a_plan_as(make: MakeModule, convert: Callable[[bytes], Any]) -> None:
    plan = relu_plan()
    module = make(convert(plan))
    assert module.serialized_engine is not None
    assert bytes(module.serialized_engine.tolist()) == plan
    run(module)


@pytest.mark.parametrize(
    ("plan", "error", "text"),
    [
        (b"", ValueError, "is empty"),
        (torch.empty(0).byte(), ValueError, "is empty"),
        (torch.zeros(7), ValueError, r"uint8 .* got one of torch.float32"),
        (torch.zeros(2, 2).byte(), ValueError, r"shape \[2, 2\]"),
        (torch.zeros(4, device="meta").byte(), ValueError, "on meta"),
        ("plan", TypeError, "bytes or a uint8 tensor, got a str"),
    ],
    ids=["no bytes", "no elements", "dtype", "rank", "device", "type"],
)
def test_wants_a_plan(make: MakeModule, plan: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        make(plan)


def test_a_plan_that_can_not_be_loaded_is_told_when_it_runs(make: MakeModule) -> None:
    module = make(b"no plan")
    for use in (module.setup_engine, partial(module, X)):
        with pytest.raises(RuntimeError, match="could not load a plan of 7 bytes"):
            use()


def test_neither_moving_nor_casting_it_changes_the_engine(
    make: MakeModule, device: Any
) -> None:
    module = make()
    run(module)
    model = torch.nn.Sequential(module)
    for moved in (model.to("meta"), model.cuda(), model.half(), model.double()):
        run(moved)
    assert device.calls("createInferRuntime") == 1
    assert device.counters()["compilations"] == 2


def test_has_ranges_for_profilers(make: MakeModule) -> None:
    module = make(name="relu")
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True
    ) as profile:
        module(X)
        module(X)
    kind = type(module).__name__
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts[f"{kind}:setup relu"] == 1
    assert counts[f"{kind}:forward relu"] == 2


def test_repr_tells_what_it_runs(make: MakeModule, runtime: str) -> None:
    plan = relu_plan()
    text = repr(make(plan, name="relu"))
    assert "'relu', x -> y" in text
    assert f"{len(plan)} bytes" in text
    assert f"{'C++' if runtime == 'cpp' else 'Python'} runtime" in text


# Settings and caches.


def test_settings_hold_from_the_next_inference_on(
    make: MakeModule, device: Any
) -> None:
    plan = dynamic_relu_plan([1], [4], [8], kernels=2)
    module = make(plan, runtime_settings=RuntimeSettings("none"))
    run(module)
    assert device.counters()["compilations"] == 0
    module.runtime_settings = module.runtime_settings.merge(
        dynamic_shapes_kernel_specialization_strategy="eager"
    )
    run(module)
    assert device.counters()["compilations"] == 2
    assert module.runtime_settings == RuntimeSettings("eager")


@pytest.mark.usefixtures("without_checkpoints")
def test_a_path_makes_a_cache_that_is_saved_when_the_module_goes(
    make: MakeModule, device: Any, path: Path
) -> None:
    module = make(runtime_settings=RuntimeSettings(runtime_cache=path))
    cache = cache_of(module)
    assert (cache.path, cache.autosave_on_del) == (str(path), True)
    assert cache.is_cpp_runtime() == module.is_cpp_runtime()
    run(module)
    assert not path.exists()
    del cache, module
    assert kernels_in(path, device, make) == 2


@pytest.mark.usefixtures("without_checkpoints")
def test_the_path_of_the_cache_in_use_keeps_it(make: MakeModule, path: Path) -> None:
    module = make(runtime_settings=RuntimeSettings(runtime_cache=path))
    cache = cache_of(module)
    run(module)
    module.runtime_settings = RuntimeSettings("none", runtime_cache=str(path))
    assert cache_of(module) is cache
    assert not path.exists()


def test_another_cache_saves_the_one_before_it_each_time(
    make: MakeModule, device: Any, path: Path
) -> None:
    module = make(runtime_settings=RuntimeSettings(runtime_cache=path))
    settings = module.runtime_settings
    for _ in range(2):
        module.runtime_settings = settings
        run(module)
        module.runtime_settings = RuntimeSettings()
        assert kernels_in(path, device, make) == 2
        path.unlink()


def test_a_cache_that_does_not_autosave_is_not_saved(
    make: MakeModule, make_cache: Callable[..., RuntimeCache], path: Path
) -> None:
    cache = make_cache(path)
    module = make(runtime_settings=RuntimeSettings(runtime_cache=cache))
    run(module)
    module.runtime_settings = RuntimeSettings()
    del module
    assert not path.exists()
    assert cache.save() > 0


def test_a_cache_that_can_not_be_saved_costs_a_warning(
    make: MakeModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "missing" / "cache.bin"
    module = make(runtime_settings=RuntimeSettings(runtime_cache=path))
    run(module)
    caplog.clear()  # removes the load's warning
    module.runtime_settings = RuntimeSettings()
    run(module)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"Can't save the runtime cache '{path}'")


def test_a_cache_of_the_other_runtime_is_refused(make: MakeModule, path: Path) -> None:
    module = make(runtime_settings=RuntimeSettings(runtime_cache=path))
    before = module.runtime_settings
    other = RuntimeCache(use_python_runtime=module.is_cpp_runtime())
    with pytest.raises(ValueError, match="expected one made with use_python_runtime="):
        module.runtime_settings = RuntimeSettings("none", runtime_cache=other)
    assert module.runtime_settings == before
    run(module)


def test_modules_may_share_a_cache(
    make: MakeModule, make_cache: Callable[..., RuntimeCache], device: Any
) -> None:
    settings = RuntimeSettings(runtime_cache=make_cache())
    run(make(runtime_settings=settings))
    run(make(runtime_settings=settings))
    assert device.counters() == {"compilations": 2, "cache_hits": 2}


# Kernels that compile in the background when a module is deleted.


def start_compiling(module: EngineModule, device: Any) -> None:
    """Returns while a kernel, started by the strategy "lazy", compiles. That takes a while."""
    device.set_compile_time(0.3)
    module(torch.ones(3))
    deadline = time.monotonic() + DEADLINE
    while device.counters()["compilations"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def dynamic_module(make: MakeModule, cache: RuntimeCache | Path) -> EngineModule:
    plan = dynamic_relu_plan([1], [4], [8], kernels=1)
    return make(plan, runtime_settings=RuntimeSettings(runtime_cache=cache))


def assert_was_saved(path: Path, make: MakeModule, device: Any) -> None:
    device.reset_counters()
    module = dynamic_module(make, path)
    module(torch.ones(3))
    device.wait_for_background_compilation()
    assert device.counters() == {"compilations": 0, "cache_hits": 1}


@pytest.mark.parametrize("cache_is_older", [False, True])
@pytest.mark.parametrize("is_cycle", [False, True])
def test_a_kernel_that_compiles_when_the_module_goes_is_saved(
    make: MakeModule,
    make_cache: Callable[..., RuntimeCache],
    device: Any,
    path: Path,
    collect: Callable[[], int],
    cache_is_older: bool,
    is_cycle: bool,
) -> None:
    # The garbage collector calls the finalizers of a cycle in order of age.
    cache = make_cache(path, autosave_on_del=True) if cache_is_older else path
    module = dynamic_module(make, cache)
    if is_cycle:
        module.__dict__["itself"] = [module]
    start_compiling(module, device)
    del cache, module
    collect()
    assert_was_saved(path, make, device)


@pytest.fixture
def collect() -> Iterator[Callable[[], int]]:
    """Collects garbage. Nothing else collects any during the test."""
    gc.collect()
    gc.disable()
    yield gc.collect
    gc.enable()


def test_a_kernel_that_compiles_when_the_settings_change_is_saved(
    make: MakeModule, device: Any, path: Path
) -> None:
    module = dynamic_module(make, path)
    start_compiling(module, device)
    module.runtime_settings = RuntimeSettings()
    assert_was_saved(path, make, device)


def test_a_module_runs_on_when_its_cache_has_saved_itself(
    make: MakeModule, device: Any, path: Path
) -> None:
    module = dynamic_module(make, path)
    start_compiling(module, device)
    cache_of(module)._autosave_if_enabled()  # as at exit
    assert_was_saved(path, make, device)
    assert torch.equal(module(X), torch.relu(X))


# The interpreter ends while a kernel of `module`, a global variable, compiles.
EXIT = """
device = contextlib.ExitStack()
simulated = device.enter_context(installed_device())
plan = dynamic_relu_plan([1], [4], [8], kernels=1)
module = TorchTensorRTModule(
    plan,
    ["x"],
    ["y"],
    runtime_settings=RuntimeSettings(runtime_cache=sys.argv[2]),
    use_python_runtime=sys.argv[1] == "python",
)
start_compiling(module, simulated)
"""


@pytest.mark.parametrize("has_anchor", [True, False])
def test_a_kernel_that_compiles_at_exit_is_saved(
    make: MakeModule, runtime: str, device: Any, path: Path, has_anchor: bool
) -> None:
    code = f"import contextlib\nfrom {__name__} import *\n{EXIT}"
    if not has_anchor:
        code += "atexit.unregister(module.runtime_settings.runtime_cache._atexit_token)"
    done = run_interpreter(code, runtime, path, before_imports="import atexit")
    assert (done.returncode, done.stderr) == (0, "")
    assert_was_saved(path, make, device)


# Copies.


def through_pickle(module: EngineModule, path: Path) -> EngineModule:
    copied: EngineModule = pickle.loads(pickle.dumps(module))
    return copied


def through_torch(module: EngineModule, path: Path) -> EngineModule:
    torch.save(module, path)
    copied: EngineModule = torch.load(path, weights_only=False)
    return copied


def through_deepcopy(module: EngineModule, path: Path) -> EngineModule:
    copied = copy.deepcopy(module)
    assert copied.serialized_engine is module.serialized_engine
    return copied


@pytest.mark.usefixtures("without_checkpoints")
@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("duplicate", [through_pickle, through_torch, through_deepcopy])
def test_copies_run_with_the_same_settings(
    make: MakeModule,
    device: Any,
    path: Path,
    tmp_path: Path,
    duplicate: Callable[[EngineModule, Path], EngineModule],
    has_run: bool,
) -> None:
    settings = RuntimeSettings("none", "whole_graph_capture", path)
    module = make(name="relu", runtime_settings=settings)
    if has_run:
        run(module)
    device.reset_counters()
    copied = duplicate(module, tmp_path / "module.pt")
    run(copied)
    # The copy includes the kernels: no module has been deleted yet, so there is no file.
    hits = 2 if has_run else 0
    assert device.counters() == {"compilations": 2 - hits, "cache_hits": hits}
    assert not path.exists()
    assert type(copied) is type(module)
    assert copied.is_cpp_runtime() == module.is_cpp_runtime()
    assert copied.name == "relu"
    assert copied.runtime_settings == module.runtime_settings


def test_copies_of_modules_that_share_a_cache_share_one(
    make: MakeModule, make_cache: Callable[..., RuntimeCache]
) -> None:
    settings = RuntimeSettings(runtime_cache=make_cache())
    model = torch.nn.ModuleList(make(runtime_settings=settings) for _ in range(2))
    one, two = copy.deepcopy(model)
    assert isinstance(one, EngineModule) and isinstance(two, EngineModule)
    assert cache_of(one) is cache_of(two)
    assert cache_of(one) is not settings.runtime_cache


@pytest.mark.parametrize("is_empty", [False, True])
def test_a_state_dict_restores_it(
    make: MakeModule, runtime: str, path: Path, tmp_path: Path, is_empty: bool
) -> None:
    file = tmp_path / "state.pt"
    settings = RuntimeSettings("none", "whole_graph_capture", path)
    plan = relu_plan(pairs=2)
    names = (["x1", "x"], ["y", "y1"])
    model = torch.nn.Sequential(
        make(plan, *names, name="two", runtime_settings=settings)
    )
    torch.save(model.state_dict(), file)
    other = make()
    if is_empty:
        other = type(other)()  # type: ignore[call-arg]
    else:
        run(other)
    torch.nn.Sequential(other).load_state_dict(torch.load(file, weights_only=True))
    y, y1 = other(X + 1, X)
    assert torch.equal(y, torch.relu(X)) and torch.equal(y1, torch.relu(X + 1))
    assert other.name == "two"
    assert other.runtime_settings == RuntimeSettings("none", "whole_graph_capture")


def test_a_state_dict_leaves_the_cache_in_use(make: MakeModule, path: Path) -> None:
    """A checkpoint must not decide which file is written."""
    module = make(runtime_settings=RuntimeSettings(runtime_cache=path))
    cache = cache_of(module)
    theirs = RuntimeSettings(runtime_cache=path.with_name("theirs.bin"))
    module.load_state_dict(make(relu_plan(), runtime_settings=theirs).state_dict())
    assert cache_of(module) is cache
    run(module)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"serialized_engine": torch.zeros(3)}, ValueError),
        ({"serialized_engine": "a plan"}, TypeError),
        ({"input_binding_names": None}, TypeError),
        ({"cuda_graph_strategy": "on"}, ValueError),
        ("name", KeyError),
    ],
    ids=["plan", "type", "names", "strategy", "missing"],
)
def test_a_wrong_state_changes_nothing(
    make: MakeModule, change: Any, error: type[Exception]
) -> None:
    module = make()
    state = module.get_extra_state()
    if isinstance(change, str):
        del state[change]
    else:
        state |= change
    state["output_binding_names"].append("of the state alone")
    with pytest.raises(error):
        module.set_extra_state(state)
    run(module)


def test_torch_load_moves_neither_plan_nor_kernels(
    make: MakeModule, path: Path, tmp_path: Path
) -> None:
    """map_location is "cuda", or "meta" in its place where there is no GPU."""
    where = "cuda" if torch.cuda.is_available() else "meta"
    module = make(runtime_settings=RuntimeSettings(runtime_cache=path))
    run(module)
    cache = cache_of(module)
    torch.save(cache, tmp_path / "cache.pt")
    loaded = torch.load(tmp_path / "cache.pt", map_location=where, weights_only=False)
    kernels, loaded_kernels = io.BytesIO(), io.BytesIO()
    assert cache.save_to_stream(kernels) > 0
    loaded.save_to_stream(loaded_kernels)
    assert loaded_kernels.getvalue() == kernels.getvalue()
    state = module.get_extra_state()
    if where == "cuda":
        state["serialized_engine"] = state["serialized_engine"].cuda()
    module.set_extra_state(state)
    assert module.serialized_engine is not None and module.serialized_engine.is_cpu
    run(module)


def test_a_replica_leaves_the_engine_alone(make: MakeModule, device: Any) -> None:
    module = make()
    run(module)
    device.reset_counters()
    replica = module._replicate_for_data_parallel()
    del replica
    run(module)
    assert device.counters() == {"compilations": 0, "cache_hits": 0}


def test_settings_of_another_type(make: MakeModule, path: Path) -> None:
    module = make()
    with pytest.raises(TypeError, match="expected RuntimeSettings"):
        module.runtime_settings = str(path)  # type: ignore[assignment]
    run(module)


def test_a_module_without_a_plan_says_so(make: MakeModule, tmp_path: Path) -> None:
    module = make()
    module.set_extra_state(module.get_extra_state() | {"serialized_engine": None})
    for use in (partial(module, X), partial(module.save, tmp_path / "engine")):
        with pytest.raises(RuntimeError, match="has no engine yet"):
            use()
    repr(module)
