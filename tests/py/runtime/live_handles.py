"""Handles that engines on the simulated device have made live, and the kernels in them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch

from tests.py.runtime.runtime_cache_testing import handle_of, to_bytes, to_tensor
from tests.util.simulation.simulated_device import relu_plan
from torch_tensorrt.runtime._engine.trt_engine import TRTEngine


def engine_of(runtime: str, plan: bytes) -> Any:
    if runtime == "cpp":
        return torch.classes.tensorrt.Engine(to_tensor(plan), ["x"], ["y"])
    return TRTEngine(to_tensor(plan), ["x"], ["y"])


def run(runtime: str, engine: Any) -> None:
    inputs = [torch.tensor([-1.0, 0.0, 1.0, 2.0])]
    if runtime == "cpp":
        (y,) = torch.ops.tensorrt.execute_engine(inputs, engine)
    else:
        (y,) = engine.execute(inputs)
    assert y.tolist() == [0.0, 0.0, 1.0, 2.0]


def compile_into(runtime: str, handle: Any, *names: str) -> Any:
    """Starts engines with that cache, which compile those of `names` that are not in it."""
    if runtime == "cpp":
        handle.attach()  # so that no engine is the last one to use it, which would save it
    for name in names:
        engine = engine_of(
            runtime, relu_plan(name, 1 if name else 0, 100 + 10 * len(name))
        )
        engine.set_runtime_settings("lazy", "disabled", handle)
        run(runtime, engine)
    return handle


def live(runtime: str, path: Path | str, *names: str) -> Any:
    """A live handle with kernels that no file has."""
    return compile_into(runtime, handle_of(runtime, path), *(names or [""]))


def save_as_other(runtime: str, path: Path, *names: str) -> int:
    """Saves as a process that starts without a cache does. Keeps the file's kernels."""
    written: int = live(runtime, "", *names).save(str(path))
    return written


def kernels_in(data: bytes | torch.Tensor) -> list[str]:
    """The names of the kernels in a simulated cache's bytes.

    tests/util/simulation/SimulatedRuntimeCache.h describes the format.
    """
    rest = to_bytes(data) if isinstance(data, torch.Tensor) else data

    def take(size: int) -> bytes:
        nonlocal rest
        taken, rest = rest[:size], rest[size:]
        assert len(taken) == size
        return taken

    def text() -> str:
        (size,) = struct.unpack("=Q", take(8))
        return take(size).decode("latin-1")

    for _ in range(4):  # magic, version, GPU, operating system
        text()
    take(1 + 4)  # CUDA in graphics, driver
    (count,) = struct.unpack("=Q", take(8))
    names = []
    for _ in range(count):
        names.append(text().removesuffix("0"))
        text()
    return sorted(names)


def kernels_on_disk(path: Path) -> list[str]:
    return kernels_in(path.read_bytes())
