"""RuntimeSettings -> IRuntimeConfig; the twin of core/runtime/TRTRuntimeConfig.h."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from dataclasses import dataclass
from typing import Any

import tensorrt_rtx as trt

from torch_tensorrt.runtime._cache.runtime_cache_handle import RuntimeCacheHandle
from torch_tensorrt.runtime._engine.engine_loader import LoadedEngine
from torch_tensorrt.runtime._runtime_settings import (
    CUDA_GRAPH_STRATEGIES,
    DYNAMIC_SHAPES_KERNEL_SPECIALIZATION_STRATEGIES,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineSettings:
    """The run-time knobs as an engine has them: its cache is a handle, or none.

    Two caches are equal if they are one object, whatever their paths.
    """

    dynamic_shapes_kernel_specialization_strategy: str = "lazy"
    cuda_graph_strategy: str = "disabled"
    runtime_cache: RuntimeCacheHandle | None = None

    @classmethod
    def make(
        cls,
        dynamic_shapes_kernel_specialization_strategy: str | int,
        cuda_graph_strategy: str | int,
        runtime_cache: RuntimeCacheHandle | None,
    ) -> EngineSettings:
        """Takes strategies by name or by number.

        Raises:
            RuntimeError: a strategy that there is not, listing those there are.
        """
        return cls(
            _strategy(
                "dynamic shapes kernel specialization strategy",
                dynamic_shapes_kernel_specialization_strategy,
                DYNAMIC_SHAPES_KERNEL_SPECIALIZATION_STRATEGIES,
            ),
            _strategy(
                "CUDA graph strategy", cuda_graph_strategy, CUDA_GRAPH_STRATEGIES
            ),
            runtime_cache,
        )

    def __str__(self) -> str:
        cache = self.runtime_cache
        return (
            "RuntimeSettings(dynamic_shapes_kernel_specialization_strategy="
            f"{self.dynamic_shapes_kernel_specialization_strategy}, cuda_graph_strategy="
            f"{self.cuda_graph_strategy}, runtime_cache="
            f"{'none' if cache is None else repr(cache.path)})"
        )


def _strategy(kind: str, value: str | int, known: tuple[str, ...]) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RuntimeError(
            f"A strategy is a string or an integer, got a {type(value).__name__}"
        )
    if isinstance(value, str) and value in known:
        return value
    if isinstance(value, int) and 0 <= value < len(known):
        return known[value]
    *first, last = [f"{name} ({number})" for number, name in enumerate(known)]
    raise RuntimeError(
        f"Unknown {kind} {value!r}, expected {', '.join(first)} or {last}"
    )


@dataclass
class ConfiguredContext:
    """An `IExecutionContext`, and what must outlive it.

    TensorRT-RTX's interface promises nothing of keeping them alive, also not a cache that it has
    refused.
    """

    context: Any
    config: Any
    cache: Any

    def close(self) -> None:
        """Lets go of them in order, also if an exception's traceback has this object."""
        self.context = None
        self.config = None
        self.cache = None


@dataclass(frozen=True)
class _InUse:
    """A cache that was attached, and the process that attached it."""

    cache: RuntimeCacheHandle
    process: int


class TRTRuntimeConfig:
    """Carries an engine's settings into the `IRuntimeConfig` of its execution contexts.

    Nothing about the runtime cache is an error here: whatever keeps it from being loaded, attached
    or saved is a warning, and the engine runs, compiling its kernels anew where it must.

    Thread safety: all methods, from any thread.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._lock = (
            threading.Lock()
        )  # not held while a cache is saved; guards the rest
        self._settings = settings
        self._config: Any = None
        self._cache: Any = None  # what _config has, or has refused; to outlive it
        self._cache_in_use: _InUse | None = None

    @property
    def settings(self) -> EngineSettings:
        with self._lock:
            return self._settings

    def set_settings(self, settings: EngineSettings) -> bool:
        """True if these are other settings than before.

        Then they hold for contexts created from now on, while those there are keep theirs; and if
        another cache is among them, the one before it is saved, as `save_runtime_cache` does.
        """
        old = None
        with self._lock:
            if settings == self._settings:
                return False
            if settings.runtime_cache is not self._settings.runtime_cache:
                old, self._cache_in_use = self._cache_in_use, None
            self._settings = settings
            self._forget_config()
        _autosave(old)
        return True

    def create_execution_context(self, loaded: LoadedEngine) -> ConfiguredContext:
        """A context with these settings, of the one engine that this is used for until `reset`.

        The engine's device is to be the current one.

        Raises:
            RuntimeError: TensorRT-RTX can't create an `IRuntimeConfig` or a context.
        """
        with self._lock:
            if self._config is None:
                self._make_config(loaded)
            # It compiles its kernels here.
            context = loaded.engine.create_execution_context(self._config)
            if context is None:
                raise RuntimeError(
                    "TensorRT-RTX could not create an execution context; the log has its reasons"
                )
            return ConfiguredContext(context, self._config, self._cache)

    def is_monolithic_capturable(
        self, has_dynamic_inputs: bool, context: ConfiguredContext, stream: int
    ) -> bool:
        """Whether the caller may capture the next inference of `context` in a CUDA graph.

        No if TensorRT-RTX says so, if it would itself capture meanwhile, or if it would specialize
        kernels in the background, which the graph would never get to use.
        """
        settings = self.settings
        specializes_in_background = (
            has_dynamic_inputs
            and settings.dynamic_shapes_kernel_specialization_strategy == "lazy"
        )
        if specializes_in_background or settings.cuda_graph_strategy != "disabled":
            return False
        return bool(context.context.is_stream_capturable(stream))

    def save_runtime_cache(self) -> None:
        """Saves the runtime cache in use to its file; for destructors, so it raises nothing.

        Does nothing before one is attached, if the handle has no path, if its autosave is off, and
        in a forked child of the process that attached it.
        """
        _autosave(self._cache_in_use)

    def reset(self) -> None:
        """Forgets the `IRuntimeConfig`, so that the next use creates it anew. Saves nothing."""
        with self._lock:
            self._forget_config()
            self._cache_in_use = None

    def _forget_config(self) -> None:
        self._config = None
        self._cache = None

    def _make_config(self, loaded: LoadedEngine) -> None:
        config = loaded.engine.create_runtime_config()
        if config is None:
            raise RuntimeError(
                "TensorRT-RTX could not create the runtime config of an engine"
            )
        settings = self._settings
        config.dynamic_shapes_kernel_specialization_strategy = getattr(
            trt.DynamicShapesKernelSpecializationStrategy,
            settings.dynamic_shapes_kernel_specialization_strategy.upper(),
        )
        _set_cuda_graph_strategy(config, settings.cuda_graph_strategy)
        self._config = config
        if settings.runtime_cache is not None:
            self._attach_cache(settings.runtime_cache)
        logger.debug("Runtime config initialized with %s", settings)

    def _attach_cache(self, handle: RuntimeCacheHandle) -> None:
        try:
            self._cache = handle.ensure_materialized(self._config)
            if not self._config.set_runtime_cache(self._cache):
                raise RuntimeError(
                    f"TensorRT-RTX refused the runtime cache '{handle.path}'"
                )
            self._cache_in_use = _InUse(handle, os.getpid())
        except Exception as error:
            # As text: a log record that is kept would keep what the traceback has.
            reason = str(error)
            logger.warning("The engine runs without a runtime cache: %s", reason)


def _set_cuda_graph_strategy(config: Any, strategy: str) -> None:
    wanted = getattr(trt.CudaGraphStrategy, strategy.upper())
    # A setter has no answer, and TensorRT-RTX does not document whether this one raises.
    with contextlib.suppress(Exception):
        config.cuda_graph_strategy = wanted
    if config.cuda_graph_strategy != wanted:
        logger.warning(
            "TensorRT-RTX refused the CUDA graph strategy %s; the engine runs without it",
            strategy,
        )


def _autosave(in_use: _InUse | None) -> None:
    if in_use is None or in_use.process != os.getpid():
        return
    cache = in_use.cache
    try:
        if cache.autosave and cache.path:
            cache.save()
    except Exception as error:
        text = str(error)
        if not text.startswith("Can't save the runtime cache"):
            text = f"Can't save the runtime cache '{cache.path}': {text}"
        with contextlib.suppress(Exception):  # of the user's log handlers
            logger.warning("%s", text)
