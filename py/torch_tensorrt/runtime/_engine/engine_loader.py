"""Where the Python runtime deserializes plans; the twin of core/runtime/EngineLoader.h."""

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
        engine: a `tensorrt_rtx.ICudaEngine`, or what acts like one.
        device: where every tensor lives whose address the contexts are given. A CUDA device
            has its index, and the engine is to be used with that device current.
        runtime: what the engine must not outlive, its `tensorrt_rtx.Runtime`.
        kind: which runtime caches fit; None if that is unknown.
    """

    engine: Any  # before `runtime`, since CPython lets attributes go in their order
    device: torch.device
    runtime: Any = None
    kind: RuntimeCacheKind | None = None


EngineLoader = Callable[[memoryview], LoadedEngine]
"""Makes an engine out of the bytes of a serialized plan, which it may not keep.

Raises RuntimeError with the reason where that is impossible. Called from any thread, also from
several at once.
"""


@cache
def tensorrt_logger() -> Any:
    """The `tensorrt_rtx.Logger` for everything of tensorrt_rtx that this package makes.

    It writes to stdout, from the severity on that the logger "torch_tensorrt" had at the last call
    of `load_engine`. There is one, never destroyed, since TensorRT-RTX uses the first that it is
    given for all its objects, as long as any of them lives. It is none that is written in Python,
    for a kernel that compiles in the background would then need the interpreter's lock to log,
    which the destructor of its context may hold while it waits for that kernel.
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
        RuntimeError: no usable GPU; a plan of another version, or none.
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
    except TypeError as error:  # pybind11's answer to a null pointer
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
    """An engine from the bytes of a plan, by the loader of this process. Thread-safe.

    Raises:
        RuntimeError: as `load_engine_with_tensorrt_rtx`, or as the loader that took its place.
    """
    return (_loader or load_engine_with_tensorrt_rtx)(plan)


def set_engine_loader(loader: EngineLoader | None) -> EngineLoader | None:
    """The loader for engines made from now on; None means the default.

    Not thread-safe: one call at a time.

    Returns:
        The one before it, so that it can be put back.
    """
    global _loader
    previous, _loader = _loader, loader
    return previous
