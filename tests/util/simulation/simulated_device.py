"""The simulated device for tests in Python; see tests/util/simulation/SimulatedDevice.h."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorrt_rtx as trt
import torch

import torch_tensorrt  # noqa: F401  loads the library that registers the device
from tests.util.simulation.simulated_tensorrt_rtx import Runtime
from torch_tensorrt.runtime._engine.engine_loader import (
    EngineLoader,
    LoadedEngine,
    set_engine_loader,
)
from torchtrt_cache.kinds import RuntimeCacheKind

# Of a device whose environment was not set.
KIND = RuntimeCacheKind("Simulated RTX GPU", 89, trt.__version__, "linux", 13000)


def simulated_engine_loader(device: Any) -> EngineLoader:
    """Loads plans on `device` for the Python runtime. The engines take their tensors on the CPU."""

    def load(plan: memoryview) -> LoadedEngine:
        try:
            runtime = Runtime(device)
        except TypeError as error:
            raise RuntimeError(
                "The simulated TensorRT-RTX could not be started"
            ) from error
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise RuntimeError(
                f"The simulated device could not load a plan of {plan.nbytes} bytes"
            )
        kind = RuntimeCacheKind(*device.kind())
        on = torch.device("cpu", 0) if device.is_second() else torch.device("cpu")
        return LoadedEngine(engine, on, runtime, kind)

    return load


@contextmanager
def installed_device(*, is_second: bool = False) -> Iterator[Any]:
    """A `torch.classes.tensorrt_simulated.Device` on which both runtimes load every plan.

    In a nested block, `is_second` makes a second device, whose engines are on a torch device of
    their own.
    """
    device = torch.classes.tensorrt_simulated.Device(is_second)
    device.install()
    previous = set_engine_loader(simulated_engine_loader(device))
    try:
        yield device
    finally:
        set_engine_loader(previous)
        device.uninstall()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


def relu_plan(
    prefix: str = "",
    kernels: int = 0,
    kernel_size: int = 1024,
    dims: Sequence[int] = (4,),
    pairs: int = 1,
) -> bytes:
    """y = relu(x) on floats, and the same for `pairs` - 1 more pairs x1 and y1, and so on.

    Its kernels are compiled at the engine's first inference.
    """
    return _bytes(
        torch.ops.tensorrt_simulated.relu_plan(
            prefix, kernels, kernel_size, dims, pairs
        )
    )


def dynamic_relu_plan(
    min: Sequence[int],
    opt: Sequence[int],
    max: Sequence[int],
    prefix: str = "",
    kernels: int = 0,
    kernel_size: int = 1024,
) -> bytes:
    """The same, for x of every shape from `min` to `max`. Its kernels are specialized for each."""
    return _bytes(
        torch.ops.tensorrt_simulated.dynamic_relu_plan(
            min, opt, max, prefix, kernels, kernel_size
        )
    )
