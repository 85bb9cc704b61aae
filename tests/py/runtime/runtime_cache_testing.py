"""Helpers for the tests of runtime caches: both runtimes' handles, their bytes and their log."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_tensorrt  # noqa: F401  registers the C++ handle
from torch_tensorrt.runtime._cache.runtime_cache_handle import RuntimeCacheHandle
from torch_tensorrt.runtime._cache.runtime_cache_statistics import (
    RuntimeCacheStatistics,
)

# The handles of both runtimes have the same contract.
RUNTIMES = ("cpp", "python")

MakeHandle = Callable[[Path | str], Any]


def handle_of(runtime: str, path: Path | str = "") -> Any:
    if runtime == "cpp":
        return torch.classes.tensorrt.RuntimeCacheHandle(str(path))
    return RuntimeCacheHandle(str(path))


def copy_of(handle: Any) -> Any:
    """A pending copy."""
    if isinstance(handle, RuntimeCacheHandle):
        return RuntimeCacheHandle.from_state(handle.state)
    return copy.deepcopy(handle)


def statistics_of(handle: Any) -> RuntimeCacheStatistics:
    values = handle.statistics()
    if isinstance(values, RuntimeCacheStatistics):
        return values
    return RuntimeCacheStatistics(*values)


def to_tensor(data: bytes) -> torch.Tensor:
    if not data:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def to_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.tolist())


def names_in(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


class Log:
    """What both runtimes have logged since the last call, in lines such as "WARNING: text"."""

    def __init__(
        self, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        self._capfd = capfd
        self._caplog = caplog

    def lines(self) -> list[str]:
        lines = [
            line.replace("[Torch-TensorRT] - ", "", 1)
            for line in self._capfd.readouterr().err.splitlines()
            if "Simulated TensorRT-RTX" not in line  # logged by the simulated device
        ]
        lines += [
            f"{record.levelname}: {record.getMessage()}"
            for record in self._caplog.records
        ]
        self._caplog.clear()
        return lines

    def warnings(self) -> list[str]:
        return [line for line in self.lines() if line.startswith("WARNING:")]
