"""Deserializes the plans of the Python runtime. The twin of core/runtime/EngineLoader.h."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import tensorrt_rtx as trt
import torch

from torchtrt_cache.kinds import RuntimeCacheKind, UnknownKindError, kind_of_device

_logger = logging.getLogger("torch_tensorrt")


@dataclass(frozen=True)
class LoadedEngine:
    """An engine, and where it runs.

    Attributes:
        engine: A `tensorrt_rtx.ICudaEngine`, or an object that acts like one.
        device: The device of every tensor whose address is given to the engine's contexts. A CUDA
            device always has an index. The engine must be used with this device current.
        runtime: The object that the engine must not outlive, its `tensorrt_rtx.Runtime`.
        kind: The kind of runtime cache that fits this device; None if it is unknown.
    """

    engine: Any  # before `runtime`, because CPython destroys attributes in their order
    device: torch.device
    runtime: Any = None
    kind: RuntimeCacheKind | None = None


EngineLoader = Callable[[memoryview], LoadedEngine]
"""Makes an engine from the bytes of a serialized plan. It must not keep the bytes.

Raises RuntimeError with the reason if it can't make an engine. It is called from any thread, and
from several at once.
"""


@cache
def tensorrt_logger() -> Any:
    """Returns the `tensorrt_rtx.Logger` for all tensorrt_rtx objects that run engines.

    It writes messages to stdout that have at least the severity that the logger "torch_tensorrt"
    had at the last call of `load_engine`. It is shared, and it is never destroyed, because
    TensorRT-RTX uses the first logger for all its objects as long as any of them lives. It is not
    written in Python: a kernel that compiles in the background would need the interpreter's lock to
    log, and the destructor of its context may hold that lock while it waits for the kernel.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(logger))
    return logger


def _severity() -> Any:
    level = _logger.getEffectiveLevel()
    if level <= logging.DEBUG:
        return trt.Logger.VERBOSE
    if level <= logging.INFO:
        return trt.Logger.INFO
    return trt.Logger.WARNING if level <= logging.WARNING else trt.Logger.ERROR


def load_engine_with_tensorrt_rtx(plan: memoryview) -> LoadedEngine:
    """Deserializes with TensorRT-RTX on the current CUDA device.

    Raises:
        RuntimeError: There is no usable GPU, or `plan` is from another version or not a plan.
    """
    if not torch.cuda.is_available():
        raise RuntimeError(
            "A TensorRT-RTX engine needs an NVIDIA GPU, and torch finds none on this machine "
            "(driver missing, CUDA_VISIBLE_DEVICES, or a torch built without CUDA)"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    logger = tensorrt_logger()
    logger.min_severity = _severity()
    try:
        runtime = trt.Runtime(logger)
    except TypeError as error:  # pybind11 raises it for a null pointer
        raise RuntimeError(f"TensorRT-RTX could not be started on {device}") from error
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise RuntimeError(
            f"TensorRT-RTX could not load a plan of {plan.nbytes} bytes on {device}; stdout has "
            "its reasons (another version, another GPU, or no plan)"
        )
    return LoadedEngine(engine, device, runtime, _kind_of(device))


def _kind_of(device: torch.device) -> RuntimeCacheKind | None:
    try:
        return kind_of_device(device.index, trt.__version__)
    except UnknownKindError as error:
        _logger.debug("The kind of %s is unknown: %s", device, error)
        return None


_loader: EngineLoader | None = None  # None means the default


def load_engine(plan: memoryview) -> LoadedEngine:
    """Deserializes every plan of this process. Thread-safe.

    Calls `load_engine_with_tensorrt_rtx` unless `set_engine_loader` installed another loader.

    Raises:
        RuntimeError: As `load_engine_with_tensorrt_rtx`, or as the other loader.
    """
    return (_loader or load_engine_with_tensorrt_rtx)(plan)


def set_engine_loader(loader: EngineLoader | None) -> EngineLoader | None:
    """Installs the loader for engines made from now on. None means the default.

    Not thread-safe: one call at a time.

    Returns:
        The previous loader, so that it can be restored.
    """
    global _loader
    previous, _loader = _loader, loader
    return previous
