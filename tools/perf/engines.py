"""Engines on the simulated device, and processes of a benchmark that run them."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from torch_tensorrt.dynamo.runtime import TorchTensorRTModule
from torch_tensorrt.runtime import RuntimeCache, RuntimeSettings

T = TypeVar("T")

USES_PYTHON_RUNTIME = {"C++": False, "Python": True}

# A process forked from one that has imported torch starts at once.
fork = multiprocessing.get_context("fork")


def in_own_process(function: Callable[..., T], *arguments: Any) -> T:
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: sender.send(function(*arguments)))
    process.start()
    sender.close()
    try:
        result: T = receiver.recv()
    except EOFError:
        sys.exit("A process of the benchmark failed")
    process.join()
    return result


def start_engine(
    plan: bytes,
    cache: RuntimeCache | Path | str,
    use_python_runtime: bool,
    x: torch.Tensor | None = None,
) -> TorchTensorRTModule:
    """Runs the engine once, on `x` or by default on 4 elements."""
    module = TorchTensorRTModule(
        plan,
        ["x"],
        ["y"],
        runtime_settings=RuntimeSettings(runtime_cache=cache),
        use_python_runtime=use_python_runtime,
    )
    module(torch.ones(4) if x is None else x)
    return module
