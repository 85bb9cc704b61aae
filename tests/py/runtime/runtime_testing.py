"""Helpers for the tests of this folder: engines of either runtime, and processes that run them.

The tests run on the simulated device or on a GPU. TORCHTRT_TEST_DEVICE selects "simulated" or
"gpu". By default they use the GPU, if there is one that engines can be built for.
TORCHTRT_TEST_PLANS names a folder with the GPU's engines, the `relu` of
tools/gpu/plans.py. By default they are compiled.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

import torch_tensorrt
from tests.util.simulation.simulated_device import installed_device, relu_plan
from tests.util.simulation.supported_gpu import supported_gpu
from torch_tensorrt.dynamo.runtime import TorchTensorRTModule
from torch_tensorrt.runtime import RuntimeCache, RuntimeSettings
from torch_tensorrt.runtime._engine.engine_file import load_engine_file

T = TypeVar("T")

KERNELS = 5  # in each plan, on the simulated device
DEADLINE = 240  # seconds; only a guard against hanging
PATIENCE = 60  # seconds, for events that take a few on an idle machine


@cache
def uses_gpu() -> bool:
    choice = os.environ.get("TORCHTRT_TEST_DEVICE", "")
    if choice not in ("", "simulated", "gpu"):
        raise ValueError(
            f"TORCHTRT_TEST_DEVICE is '{choice}', expected simulated or gpu"
        )
    if choice:
        return choice == "gpu"
    return supported_gpu() is not None


@dataclass(frozen=True)
class Plan:
    """An engine that computes y = relu(x)."""

    engine: bytes
    inputs: list[str]
    outputs: list[str]
    shape: tuple[int, ...]

    def write(self, path: Path) -> Path:
        path.write_bytes(pickle.dumps(self))
        return path

    @staticmethod
    def read(path: Path | str) -> Plan:
        plan = pickle.loads(Path(path).read_bytes())
        assert isinstance(plan, Plan)
        return plan


@cache
def make_plan(name: str) -> Plan:
    """Plans with different names have different kernels. Cached, since a GPU's takes seconds."""
    if uses_gpu():
        folder = os.environ.get("TORCHTRT_TEST_PLANS")
        return _built_plan(name, Path(folder)) if folder else _compiled_plan(name)
    engine = relu_plan(prefix=name, kernels=KERNELS)
    return Plan(engine, ["x"], ["y"], (4,))


def _built_plan(name: str, folder: Path) -> Plan:
    files = sorted(folder.glob("*.engine"), key=lambda file: int(file.stem))
    file = files[sum(name.encode()) % len(files)]
    engine = load_engine_file(file)
    return Plan(
        engine.plan.numpy().tobytes(),
        engine.input_binding_names,
        engine.output_binding_names,
        (1, int(file.stem)),
    )


def _compiled_plan(name: str) -> Plan:
    width = 64 + 8 * (sum(name.encode()) % 64)
    linear = torch.nn.Linear(width, width, bias=False)
    torch.nn.init.eye_(linear.weight)
    module = torch_tensorrt.compile(
        torch.nn.Sequential(linear, torch.nn.ReLU()).eval(),
        arg_inputs=(torch.zeros(1, width),),
        runtime_settings=RuntimeSettings(),
    )
    assert module.serialized_engine is not None
    return Plan(
        module.serialized_engine.numpy().tobytes(),
        module.input_binding_names,
        module.output_binding_names,
        (1, width),
    )


@contextmanager
def device() -> Iterator[Any]:
    """The simulated device, on which all engines of the block are made, or None on a GPU."""
    with ExitStack() as stack:
        yield None if uses_gpu() else stack.enter_context(installed_device())


def use_device() -> Any:
    """The same as `device`, until the process ends."""
    stack = ExitStack()
    # Closed before the interpreter is torn down, and after what the caches register later.
    atexit.register(stack.close)
    return stack.enter_context(device())


def make_cache(
    runtime: str, path: Path | str = "", autosave: bool = False
) -> RuntimeCache:
    return RuntimeCache(path, autosave, use_python_runtime=runtime == "python")


def start(
    runtime: str, plan: Plan, runtime_cache: RuntimeCache | Path | str | None
) -> TorchTensorRTModule:
    """Returns a module that has compiled its kernels."""
    module = TorchTensorRTModule(
        plan.engine,
        plan.inputs,
        plan.outputs,
        runtime_settings=RuntimeSettings(runtime_cache=runtime_cache),
        use_python_runtime=runtime == "python",
    )
    run(module, plan)
    return module


def run(module: torch.nn.Module, plan: Plan) -> None:
    x = torch.arange(-2.0, torch.Size(plan.shape).numel() - 2.0).reshape(plan.shape)
    if uses_gpu():
        x = x.cuda()
    assert torch.equal(module(x), torch.relu(x))


def wait_until(is_so: Callable[[], bool]) -> None:
    # After a checkpoint that takes 3 s on a loaded machine, the next one may come 300 s later.
    deadline = time.monotonic() + 400
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def wait_for_kernels(runtime: str, path: Path, *plans: Plan) -> None:
    """Waits until the file has all kernels that a start of the plans needs."""
    wait_until(lambda: path.exists() and kernels_missing(runtime, path, *plans) == 0)


def kernels_missing(runtime: str, path: Path, *plans: Plan) -> int:
    """The amount that a start of the plans compiles because the file does not have it.

    The unit is kernels on the simulated device. On a GPU it is bytes by which the cache grows.
    """
    with device() as simulated:
        runtime_cache = make_cache(runtime, path)
        loaded = runtime_cache.load()
        for plan in plans:
            start(runtime, plan, runtime_cache)
        if simulated is None:
            return runtime_cache._handle.serialize().numel() - loaded
        compiled: int = simulated.counters()["compilations"]
        return compiled


_modules_to_stay: list[TorchTensorRTModule] = []


def start_to_stay(runtime: str, plan: Plan, path: Path | str) -> None:
    """Starts a module that lives as long as its process."""
    use_device()
    _modules_to_stay.append(start(runtime, plan, path))


def start_and_save(runtime: str, path: Path, *plans: Plan) -> int:
    runtime_cache = make_cache(runtime, path)
    modules = [start(runtime, plan, runtime_cache) for plan in plans]
    written = runtime_cache.save()
    del modules
    return written


# Before 3.10.9, CPython names the fork server's socket after the process. A process in another
# sandbox may have the same number.
multiprocessing.util.abstract_sockets_supported = False  # type: ignore[misc]

# A process forked from one that has imported torch starts quickly and inherits no thread's locks.
# It imports the tests' own modules itself, and those need pytest.
fork_server = multiprocessing.get_context("forkserver")
fork_server.set_forkserver_preload([__name__, "pytest"])


class Child:
    """A process with a device that calls one function after another."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(
            max_workers=1, mp_context=fork_server, initializer=use_device
        )
        self("".upper)  # starts the process

    def begin(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        return self._pool.submit(function, *arguments)

    def __call__(self, function: Callable[..., T], *arguments: Any) -> T:
        return self.begin(function, *arguments).result(DEADLINE)

    def end(self) -> None:
        self._pool.shutdown()


@contextmanager
def children(number: int) -> Iterator[list[Child]]:
    with ExitStack() as stack:
        there: list[Child] = []
        for _ in range(number):
            there.append(Child())
            stack.callback(there[-1].end)
        yield there


def run_interpreter(
    code: str, *arguments: object, before_imports: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs the code in a new interpreter with all names of this module and sys.argv[1:]."""
    program = f"{before_imports}\nfrom {__name__} import *\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
