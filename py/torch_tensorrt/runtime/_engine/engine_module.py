"""EngineModule, the base class of the torch modules of both runtimes."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch._C._profiler import _RecordFunctionFast

from torch_tensorrt._library import library_error
from torch_tensorrt.runtime._cache.forks import start_over_in_children
from torch_tensorrt.runtime._engine.engine_file import (
    EngineFile,
    is_plan,
    save_engine_file,
)
from torch_tensorrt.runtime._runtime_cache import RuntimeCache, path_cache
from torch_tensorrt.runtime._runtime_settings import RuntimeSettings, check_settings
from torchtrt_cache.file_lock import call_without_lock, deferred_calls

_no_python_runtime: ImportError | None = None
try:
    # Imported early: a fork during a later import could leave it half done forever.
    from torch_tensorrt.runtime._engine.trt_engine import TRTEngine
except ImportError as error:
    _no_python_runtime = error.with_traceback(None)

_UNPICKLED = ("_lock", "_slot")


class EngineSlot:
    """The engine of a module, for code that must release the engine before it continues."""

    def __init__(self) -> None:
        self.engine: TRTEngine | Any = None

    def release(self) -> None:
        """Releases the engine with its context, which ends the context's background work.

        The module makes a new engine if it is used again.
        """
        self.engine = None


class EngineModule(torch.nn.Module):
    """A torch module that runs a serialized TensorRT-RTX engine.

    The first inference, or `setup_engine`, loads the engine on the current CUDA device. Making a
    module needs no GPU. It has neither parameters nor buffers, so `to`, `cuda`, `half` and the like
    do not change it: an engine can't be moved, and its types are fixed. It computes no gradients.

    Pickles, `torch.save` and `copy.deepcopy` include the plan, the settings and the kernels of the
    cache. A `state_dict` has the plan, the names and the strategies, all of types that `torch.load`
    reads with `weights_only=True`. It has no cache, because a checkpoint must not decide which file
    is written.

    A child of fork() uses no engine of its parent: its modules load their own. A cache for a path
    is the child's own.

    Thread safety: `forward` and `setup_engine` may be called from any thread. Settings may be
    changed while other threads run the module.

    Args:
        serialized_engine: The plan: bytes, or a uint8 tensor [size in bytes] on the CPU, which is
            kept, not copied. None makes a module for `load_state_dict` to fill.
        input_binding_names: The names of the inputs in the plan, in the order in which `forward`
            takes them.
        output_binding_names: The names of the outputs, in the order in which `forward` returns
            them.
        name: Shown by `repr` and by profilers.
        runtime_settings: See the property.
        use_python_runtime: Whether the Python runtime or the C++ runtime runs it.

    Raises:
        TypeError: `serialized_engine` is neither bytes nor a tensor.
        ValueError: It is empty, or a tensor of another kind.
    """

    def __init__(
        self,
        serialized_engine: bytes | torch.Tensor | None = None,
        input_binding_names: Sequence[str] = (),
        output_binding_names: Sequence[str] = (),
        *,
        name: str = "",
        runtime_settings: RuntimeSettings | None = None,
        use_python_runtime: bool,
    ) -> None:
        super().__init__()
        self._prepare()
        self._use_python_runtime = use_python_runtime
        self._plan = None if serialized_engine is None else _to_plan(serialized_engine)
        self.input_binding_names = list(input_binding_names)
        self.output_binding_names = list(output_binding_names)
        self.name = name
        self._settings = RuntimeSettings()
        if runtime_settings is not None:
            self.runtime_settings = runtime_settings

    def _prepare(self) -> None:
        """Sets up what neither a pickle nor a copy has."""
        self._start_over()
        start_over_in_children(self)

    def _start_over(self) -> None:
        self._lock = threading.RLock()  # guards changes of the engine and its settings
        self._slot = EngineSlot()

    def start_over_in_child(self) -> None:
        """Called in a child of fork(): see forks.py. The parent's engine leaks itself."""
        self._start_over()

    def __del__(self) -> None:
        slot = self.__dict__.get("_slot")
        if slot is not None:
            slot.release()
        settings = self.__dict__.get("_settings")
        if settings is not None and settings.runtime_cache is not None:
            settings.runtime_cache._detach(slot)

    def is_cpp_runtime(self) -> bool:
        """Whether the C++ runtime runs the engine. If not, the Python runtime does."""
        return not self._use_python_runtime

    @property
    def serialized_engine(self) -> torch.Tensor | None:
        """The plan, a uint8 tensor [size in bytes] on the CPU. Must not be written to."""
        return self._plan

    @property
    def runtime_settings(self) -> RuntimeSettings:
        """How the engine runs. A path is replaced by this process's `RuntimeCache` for it.

        New settings apply from the next inference on, which makes a new execution context. If the
        cache differs, the previous one is saved if it saves itself. This process's cache for a path
        is only saved if no other engine uses it. A failure is logged as a warning.

        Raises:
            TypeError: These are not RuntimeSettings.
            ValueError: The cache belongs to the other runtime.
            ImportError: The cache is a URL, and the wheel's extra `fleet` is not installed.
            RuntimeError: The cache is a URL, and this machine has no place for its local tier.
        """
        return self._settings

    @runtime_settings.setter
    def runtime_settings(self, settings: RuntimeSettings) -> None:
        check_settings(settings)
        with deferred_calls(), self._lock:  # saves wait until the lock is released
            old = self._cache
            settings = self._with_cache(settings)
            if self._slot.engine is not None:
                if isinstance(settings.runtime_cache, RuntimeCache):
                    settings.runtime_cache._wait_until_fetched()
                _apply(settings, self._slot.engine)
            self._settings = settings
            self._attach_to_cache()
            if old is not None and old is not settings.runtime_cache:
                # Under the lock, or another thread might attach to the old cache again.
                old._detach(self._slot)
                call_without_lock(old._save_if_autosaving)

    @property
    def _cache(self) -> RuntimeCache | None:
        cache = self._settings.runtime_cache
        return cache if isinstance(cache, RuntimeCache) else None

    def _attach_to_cache(self) -> None:
        if self._cache is not None:
            self._cache._attach(self._slot)

    def _with_cache(self, settings: RuntimeSettings) -> RuntimeSettings:
        """Returns the settings with a RuntimeCache in the place of a path."""
        cache = settings.runtime_cache
        if isinstance(cache, str):
            cache = path_cache(cache, use_python_runtime=self._use_python_runtime)
            return settings.merge(runtime_cache=cache)
        if isinstance(cache, RuntimeCache) and (
            cache.is_cpp_runtime() != self.is_cpp_runtime()
        ):
            raise ValueError(
                f"{cache!r} can't serve an engine of the {_runtime_name(self)} runtime, expected "
                f"one made with use_python_runtime={self._use_python_runtime}"
            )
        if isinstance(cache, RuntimeCache) and cache._of_this_process() is not cache:
            return settings.merge(runtime_cache=cache._of_this_process())
        return settings

    def setup_engine(self) -> None:
        """Loads the engine on the current CUDA device, unless it is already loaded.

        Raises:
            RuntimeError: There is no usable GPU, there is no plan yet, the plan can't be loaded on
                the GPU, or the names are not exactly those of the plan's inputs and outputs.
        """
        self._engine()

    def _engine(self) -> TRTEngine | Any:
        with self._lock:
            engine = self._slot.engine
            if engine is None:
                with _RecordFunctionFast(f"{type(self).__name__}:setup {self.name}"):
                    engine = self._make_engine()
                self._slot.engine = engine
            return engine

    def _make_engine(self) -> TRTEngine | Any:
        if self._plan is None:
            raise RuntimeError(
                "This module has no engine yet: give it a serialized one, or load_state_dict()"
            )
        if self._cache is not None and self._cache._is_inherited():
            self.runtime_settings = self._settings  # with a cache of this process
        if self._cache is not None:
            self._cache._begin_to_fetch()
        arguments = (self._plan, self.input_binding_names, self.output_binding_names)
        engine: TRTEngine | Any
        if self._use_python_runtime:
            if _no_python_runtime is not None:
                raise RuntimeError(
                    f"The Python runtime needs tensorrt_rtx: {_no_python_runtime}"
                ) from _no_python_runtime
            engine = TRTEngine(*arguments)
        else:
            engine = torch.classes.tensorrt.Engine(*arguments)
        if self._cache is not None:
            self._cache._wait_until_fetched()
        _apply(self._settings, engine)
        return engine

    def forward(
        self, *inputs: torch.Tensor, **named_inputs: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Enqueues one inference on torch's current stream.

        Args:
            inputs: Tensors on the engine's device, in the order of `input_binding_names`.
            named_inputs: The remaining inputs, by name.

        Returns:
            The output if the engine has only one, otherwise a tuple of all outputs.

        Raises:
            RuntimeError: The number of inputs is wrong, or the dtype, device, rank or shape of one
                of them. The error names the input and what it must be. Or TensorRT-RTX fails, or as
                `setup_engine`.
            TypeError: A named input is missing, unknown, or given twice.
        """
        if named_inputs:
            inputs = self._in_order(inputs, named_inputs)
        with _RecordFunctionFast(f"{type(self).__name__}:forward {self.name}"):
            engine = self._slot.engine
            if engine is None:
                engine = self._engine()
            outputs: list[torch.Tensor]
            if self._use_python_runtime:
                outputs = engine.execute(inputs)
            else:
                outputs = torch.ops.tensorrt.execute_engine(inputs, engine)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _in_order(
        self, inputs: tuple[torch.Tensor, ...], named_inputs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        names = self.input_binding_names[len(inputs) :]
        if sorted(names) != sorted(named_inputs):
            raise TypeError(
                f"The engine's inputs are {self.input_binding_names}, got {len(inputs)} by "
                f"position and {list(named_inputs)} by name"
            )
        return (*inputs, *(named_inputs[name] for name in names))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan, the names and the strategies to a file for `torch_tensorrt.load`.

        A reader sees the old file or the new one.

        Raises:
            OSError: The file could not be written. A previous file is unchanged.
            RuntimeError: There is no plan yet.
        """
        if self._plan is None:
            raise RuntimeError("This module has no engine yet to save")
        file = EngineFile(
            plan=self._plan,
            input_binding_names=self.input_binding_names,
            output_binding_names=self.output_binding_names,
            name=self.name,
            dynamic_shapes_kernel_specialization_strategy=(
                self._settings.dynamic_shapes_kernel_specialization_strategy
            ),
            cuda_graph_strategy=self._settings.cuda_graph_strategy,
        )
        save_engine_file(path, file)

    def get_extra_state(self) -> dict[str, Any]:
        """Returns the state of this module for a `state_dict`."""
        settings = self._settings
        return {
            "serialized_engine": self._plan,
            "input_binding_names": list(self.input_binding_names),
            "output_binding_names": list(self.output_binding_names),
            "name": self.name,
            "dynamic_shapes_kernel_specialization_strategy": (
                settings.dynamic_shapes_kernel_specialization_strategy
            ),
            "cuda_graph_strategy": settings.cuda_graph_strategy,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes the state that `get_extra_state` returned. The module keeps its cache.

        After any error the module is unchanged.

        Raises:
            KeyError: Something is missing in `state`.
            ValueError: The plan is not a plan, or a strategy is unknown.
            TypeError: Something in `state` has another type.
        """
        plan = state["serialized_engine"]
        if plan is not None:
            plan = _to_plan(plan.cpu() if isinstance(plan, torch.Tensor) else plan)
        inputs = list(state["input_binding_names"])
        outputs = list(state["output_binding_names"])
        name = state["name"]
        settings = RuntimeSettings(
            state["dynamic_shapes_kernel_specialization_strategy"],
            state["cuda_graph_strategy"],
            self._cache,
        )
        with self._lock:
            self._slot.release()
            self._plan = plan
            self.input_binding_names = inputs
            self.output_binding_names = outputs
            self.name = name
            self.runtime_settings = settings

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _UNPICKLED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # The unpickled cache does the same.
        self._use_python_runtime |= library_error() is not None
        if self._plan is not None:
            self._plan = self._plan.cpu()  # torch.load's map_location may have moved it
        self._prepare()
        self._attach_to_cache()

    def _replicate_for_data_parallel(self) -> EngineModule:
        replica: EngineModule = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica._prepare()  # otherwise its end would release this module's engine
        replica._attach_to_cache()
        return replica

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineModule:
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        memo[id(self._plan)] = self._plan  # shared, because nobody writes to it
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return other

    def extra_repr(self) -> str:
        """Returns what `repr` shows of this module."""
        settings = self._settings
        size = 0 if self._plan is None else self._plan.numel()
        return (
            f"{self.name!r}, {', '.join(self.input_binding_names)} -> "
            f"{', '.join(self.output_binding_names)}, plan of {size} bytes, "
            f"{_runtime_name(self)} runtime, {settings}"
        )


def _runtime_name(module: EngineModule) -> str:
    return "C++" if module.is_cpp_runtime() else "Python"


def _apply(settings: RuntimeSettings, engine: TRTEngine | Any) -> None:
    cache = settings.runtime_cache
    # The handle is one of the engine's own runtime.
    handle: Any = cache._handle if isinstance(cache, RuntimeCache) else None
    engine.set_runtime_settings(
        settings.dynamic_shapes_kernel_specialization_strategy,
        settings.cuda_graph_strategy,
        handle,
    )


def _to_plan(serialized_engine: object) -> torch.Tensor:
    if isinstance(serialized_engine, torch.Tensor):
        plan = serialized_engine
        if not is_plan(plan):
            raise ValueError(
                "A serialized engine must be a contiguous one-dimensional uint8 tensor on the CPU, "
                f"got one of {plan.dtype} and shape {list(plan.shape)} on {plan.device}"
            )
    elif isinstance(serialized_engine, (bytes, bytearray, memoryview)):
        data = bytearray(serialized_engine)  # torch needs writable bytes
        plan = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0)
    else:
        raise TypeError(
            "A serialized engine must be bytes or a uint8 tensor, got a "
            f"{type(serialized_engine).__name__}"
        )
    if plan.numel() == 0:
        raise ValueError("The serialized engine is empty")
    return plan
