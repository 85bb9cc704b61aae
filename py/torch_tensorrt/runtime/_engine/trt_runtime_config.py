"""Makes an IRuntimeConfig from settings. The twin of core/runtime/TRTRuntimeConfig.h."""

from __future__ import annotations

import contextlib
import logging
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import tensorrt_rtx as trt

from torch_tensorrt.runtime._cache.runtime_cache_handle import RuntimeCacheHandle
from torch_tensorrt.runtime._engine.engine_loader import LoadedEngine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineSettings:
    """The run-time settings of an engine, whose cache is a handle or None.

    Two caches are equal only if they are the same object, whatever their paths.
    """

    dynamic_shapes_kernel_specialization_strategy: str = "lazy"
    cuda_graph_strategy: str = "disabled"
    runtime_cache: RuntimeCacheHandle | None = None

    def specializes_lazily(self, has_dynamic_inputs: bool) -> bool:
        """Whether kernels may be compiled in the background, long after the inference."""
        strategy = self.dynamic_shapes_kernel_specialization_strategy
        return has_dynamic_inputs and strategy == "lazy"

    def __str__(self) -> str:
        cache = self.runtime_cache
        return (
            "RuntimeSettings(dynamic_shapes_kernel_specialization_strategy="
            f"{self.dynamic_shapes_kernel_specialization_strategy}, cuda_graph_strategy="
            f"{self.cuda_graph_strategy}, runtime_cache="
            f"{'none' if cache is None else repr(cache.path)})"
        )


@dataclass
class ConfiguredContext:
    """An `IExecutionContext`, and what must outlive it.

    TensorRT-RTX's interface does not promise to keep these alive, nor a cache that it has refused.
    """

    context: Any
    config: Any
    cache: Any

    def close(self) -> None:
        """Releases them in order, even if an exception's traceback refers to this object."""
        self.context = None
        self.config = None
        self.cache = None


class TRTRuntimeConfig:
    """Carries an engine's settings into the `IRuntimeConfig` of its execution contexts.

    A runtime cache never makes the engine fail: if it can't be loaded or attached, a warning is
    logged and the engine compiles the kernels that it lacks. The owner of the cache saves it
    (`torch_tensorrt.runtime.RuntimeCache`).

    Thread safety: all methods may be called from any thread.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._lock = threading.Lock()  # guards the rest
        self._settings = settings
        self._config: Any = None
        self._cache: Any = None  # that _config has or has refused; must outlive it
        self._attached: RuntimeCacheHandle | None = None  # that contexts compile into

    @property
    def settings(self) -> EngineSettings:
        with self._lock:
            return self._settings

    def set_settings(self, settings: EngineSettings) -> bool:
        """Returns True if the settings differ from the previous ones.

        They apply to contexts created from now on. Existing contexts keep theirs.
        """
        with self._lock:
            if settings == self._settings:
                return False
            self._settings = settings
            self._forget_config()
        return True

    def create_execution_context(self, loaded: LoadedEngine) -> ConfiguredContext:
        """Returns a context with these settings.

        All calls until `reset` must be for the same engine, with its device current.

        Raises:
            RuntimeError: TensorRT-RTX can't create an `IRuntimeConfig` or a context.
        """
        with self._lock:
            if self._config is None:
                self._make_config(loaded)
            with self._compiling(specializes_lazily=False):
                context = loaded.engine.create_execution_context(self._config)
            if context is None:
                raise RuntimeError(
                    "TensorRT-RTX could not create an execution context; stdout has its reasons"
                )
            return ConfiguredContext(context, self._config, self._cache)

    def is_monolithic_capturable(
        self, has_dynamic_inputs: bool, context: ConfiguredContext, stream: int
    ) -> bool:
        """Whether the caller may capture the next inference of `context` in one CUDA graph.

        Returns False if TensorRT-RTX reports that it can't be captured, if TensorRT-RTX would
        itself capture a graph, or if it would specialize kernels in the background, which the graph
        would never use.
        """
        settings = self.settings
        specializes_lazily = settings.specializes_lazily(has_dynamic_inputs)
        if specializes_lazily or settings.cuda_graph_strategy != "disabled":
            return False
        return bool(context.context.is_stream_capturable(stream))

    def compiling(self, has_dynamic_inputs: bool) -> AbstractContextManager[None]:
        """Marks a block that may compile kernels. The cache has checkpoints during and after it."""
        with self._lock:
            return self._compiling(
                self._settings.specializes_lazily(has_dynamic_inputs)
            )

    def _compiling(self, specializes_lazily: bool) -> AbstractContextManager[None]:
        return (
            contextlib.nullcontext()
            if self._attached is None
            else self._attached.compiling(specializes_lazily)
        )

    def reset(self) -> None:
        """Forgets the `IRuntimeConfig`, so that the next use creates it anew."""
        with self._lock:
            self._forget_config()

    def _forget_config(self) -> None:
        self._config = None
        self._cache = None
        self._attached = None

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
            self._attach_cache(settings.runtime_cache, loaded)
        logger.debug("Runtime config initialized with %s", settings)

    def _attach_cache(self, handle: RuntimeCacheHandle, loaded: LoadedEngine) -> None:
        try:
            self._cache = handle.ensure_materialized(
                self._config, loaded.device, loaded.kind
            )
            if not self._config.set_runtime_cache(self._cache):
                raise RuntimeError(
                    f"TensorRT-RTX refused the runtime cache '{handle.path}'"
                )
            self._attached = handle
        except Exception as error:
            # Logged as text: a log record with the error would keep all objects of its traceback.
            reason = str(error)
            logger.warning("The engine runs without a runtime cache: %s", reason)


def _set_cuda_graph_strategy(config: Any, strategy: str) -> None:
    wanted = getattr(trt.CudaGraphStrategy, strategy.upper())
    # A setter returns nothing, and TensorRT-RTX does not document whether this one raises.
    with contextlib.suppress(Exception):
        config.cuda_graph_strategy = wanted
    if config.cuda_graph_strategy != wanted:
        logger.warning(
            "TensorRT-RTX refused the CUDA graph strategy %s; the engine runs without it",
            strategy,
        )
