"""The engine of the Python runtime. The twin of core/runtime/TRTEngine.h."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import tensorrt_rtx as trt
import torch

from torch_tensorrt.runtime._cache.forks import leak, start_over_in_children
from torch_tensorrt.runtime._cache.runtime_cache_handle import RuntimeCacheHandle
from torch_tensorrt.runtime._cache.tensor_memory import address_of, memory_of
from torch_tensorrt.runtime._engine.engine_loader import load_engine
from torch_tensorrt.runtime._engine.engine_stream import EngineStream
from torch_tensorrt.runtime._engine.trt_runtime_config import (
    ConfiguredContext,
    EngineSettings,
    TRTRuntimeConfig,
)

# Types that torch lacks are missing.
_DTYPES = {
    trt.DataType.FLOAT: torch.float32,
    trt.DataType.HALF: torch.float16,
    trt.DataType.BF16: torch.bfloat16,
    trt.DataType.FP8: torch.float8_e4m3fn,
    trt.DataType.INT8: torch.int8,
    trt.DataType.INT32: torch.int32,
    trt.DataType.INT64: torch.int64,
    trt.DataType.UINT8: torch.uint8,
    trt.DataType.BOOL: torch.bool,
}

_MOST_SHAPES = 4096  # that an engine remembers, about 1 MiB
_NO_KERNELS: AbstractContextManager[None] = nullcontext()

_MODE_NAMES = {trt.TensorIOMode.INPUT: "input", trt.TensorIOMode.OUTPUT: "output"}

# TensorRT-RTX needs an address even for a tensor without elements, whose own address is null.
_NOTHING = ctypes.create_string_buffer(256)


@dataclass(frozen=True)
class _Binding:
    name: str
    dtype: torch.dtype
    device: torch.device  # the CPU if TensorRT-RTX uses the tensor in host memory
    # The shapes that an input may have.
    min: tuple[int, ...] = ()
    max: tuple[int, ...] = ()


class TRTEngine:
    """A TensorRT-RTX engine that runs on torch's tensors, by `tensorrt_rtx`'s Python bindings.

    Its inputs and outputs ("bindings") are identified by their names in the plan. The lists of
    names set the order in which they are given and returned. The engine uses the plan's first
    optimization profile. Its execution context is made on first use.

    Its finalizer waits for the last inference. A child of fork() must not use an engine of its
    parent, which is not destroyed there.

    Thread safety: all methods may be called from any thread. One inference at a time is set up.
    Inferences on several streams run one after another, because they share the context's memory.

    Args:
        plan: The serialized plan, a uint8 tensor [size in bytes] on the CPU. It is loaded on the
            current CUDA device.
        input_names: The inputs in the order in which they are given.
        output_names: The outputs in the order in which they are returned.

    Raises:
        RuntimeError: The plan can't be loaded, such as on a machine without a GPU, the names are
            not exactly those in the plan, or a torch tensor can't be bound to one of the bindings.
    """

    def __init__(
        self,
        plan: torch.Tensor,
        input_names: Sequence[str],
        output_names: Sequence[str],
    ) -> None:
        start_over_in_children(self)
        self._loaded = load_engine(_bytes_of(plan))
        self._config = TRTRuntimeConfig(EngineSettings())
        self._lock = threading.Lock()  # guards the rest
        self._context: ConfiguredContext | None = None
        # The input shapes that the context has run with.
        self._shapes: set[tuple[torch.Size, ...]] = set()
        self._stream = EngineStream(self._loaded.device)

        self._inputs = self._describe_all(input_names, trt.TensorIOMode.INPUT)
        self._outputs = self._describe_all(output_names, trt.TensorIOMode.OUTPUT)
        self._has_dynamic_inputs = any(b.min != b.max for b in self._inputs)

    def start_over_in_child(self) -> None:
        """Called in a child of fork(): see forks.py. Nobody uses the engine there."""
        leak(self)

    def __del__(self) -> None:
        if hasattr(self, "_stream"):  # otherwise there was no context yet
            self._end()
        # Dropped now, because a reference cycle might destroy the runtime before the engine.
        self.__dict__.pop("_loaded", None)

    def _end(self) -> None:
        try:
            with self._device_guard():
                self._release_context()
        except Exception:
            # At the end of a process CUDA, and its work, may be gone.
            self._close_context()
        # Reset now, while the engine still exists.
        self._config.reset()

    @property
    def input_names(self) -> list[str]:
        return [binding.name for binding in self._inputs]

    @property
    def output_names(self) -> list[str]:
        return [binding.name for binding in self._outputs]

    def runtime_settings(self) -> tuple[str, str, RuntimeCacheHandle | None]:
        """Returns the names of the two strategies, and the cache."""
        settings = self._config.settings
        return (
            settings.dynamic_shapes_kernel_specialization_strategy,
            settings.cuda_graph_strategy,
            settings.runtime_cache,
        )

    def set_runtime_settings(
        self,
        dynamic_shapes_kernel_specialization_strategy: str,
        cuda_graph_strategy: str,
        runtime_cache: RuntimeCacheHandle | None,
    ) -> bool:
        """Returns True if the settings differ from the previous ones.

        Then the next inference makes a new execution context.
        """
        settings = EngineSettings(
            dynamic_shapes_kernel_specialization_strategy,
            cuda_graph_strategy,
            runtime_cache,
        )
        with self._lock:
            if settings == self._config.settings:
                return False
            with self._device_guard():
                self._release_context()
                return self._config.set_settings(settings)

    def execute(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Enqueues one inference, in order with the current stream of the engine's device.

        Returns:
            The outputs. They are complete once that stream has reached this point.

        Raises:
            RuntimeError: The number of inputs is wrong, or the dtype, device, rank or shape of one
                of them. The error names the input and what it must be. Or TensorRT-RTX fails.
        """
        if len(inputs) != len(self._inputs):
            raise RuntimeError(
                f"The engine takes {len(self._inputs)} inputs ({_joined(self.input_names)}), "
                f"got {len(inputs)}"
            )
        with self._device_guard():
            checked = [
                _checked(t, b) for t, b in zip(inputs, self._inputs, strict=True)
            ]
            with self._lock:
                return self._execute_locked(checked)

    def _execute_locked(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        is_capturing = self._stream.is_capturing()
        if self._context is None:
            if is_capturing:
                raise RuntimeError(
                    "The engine's first inference can't be captured in a CUDA graph; run it once "
                    "before the capture"
                )
            self._context = self._config.create_execution_context(self._loaded)
        self._bind_inputs(self._context, inputs)
        outputs = self._bind_outputs(self._context)
        handle = self._stream.begin()
        if is_capturing and not self._config.is_monolithic_capturable(
            self._has_dynamic_inputs, self._context, handle
        ):
            raise RuntimeError(
                "This inference can't be captured in a CUDA graph, with "
                f"{self._config.settings}"
            )
        shapes = tuple(t.shape for t in inputs if self._has_dynamic_inputs)
        is_known = shapes in self._shapes
        # The first inference with its input shapes may compile kernels.
        with (
            _NO_KERNELS
            if is_known
            else self._config.compiling(self._has_dynamic_inputs)
        ):
            is_enqueued = self._context.context.execute_async_v3(handle)
        self._stream.end()
        if not is_enqueued:
            raise RuntimeError(
                "TensorRT-RTX could not run the engine; stdout has its reasons"
            )
        if not is_known:
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes.clear()
            self._shapes.add(shapes)
        return outputs

    def _device_guard(self) -> AbstractContextManager[object]:
        device = self._loaded.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _names(self, mode: Any) -> list[str]:
        engine = self._loaded.engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        return [name for name in names if engine.get_tensor_mode(name) == mode]

    def _describe_all(self, names: Sequence[str], mode: Any) -> list[_Binding]:
        there = self._names(mode)
        if sorted(names) != sorted(there):
            raise RuntimeError(
                f"The engine's {_MODE_NAMES[mode]}s are {_joined(there)}, got {_joined(names)}"
            )
        return [self._describe(name, mode) for name in names]

    def _describe(self, name: str, mode: Any) -> _Binding:
        engine = self._loaded.engine
        what = f"The {_MODE_NAMES[mode]} '{name}'"
        datatype = engine.get_tensor_dtype(name)
        if datatype not in _DTYPES:
            raise RuntimeError(
                f"{what} is of TensorRT-RTX's data type {int(datatype)}, which torch does "
                "not support"
            )
        if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
            raise RuntimeError(
                f"{what} is not laid out as a contiguous tensor "
                f"({engine.get_tensor_format_desc(name)})"
            )
        on_host = engine.get_tensor_location(name) == trt.TensorLocation.HOST
        low = high = tuple(engine.get_tensor_shape(name))
        if mode == trt.TensorIOMode.INPUT and -1 in low:
            least, _, greatest = engine.get_tensor_profile_shape(name, 0)
            low, high = tuple(least), tuple(greatest)
        return _Binding(
            name,
            _DTYPES[datatype],
            torch.device("cpu") if on_host else self._loaded.device,
            low,
            high,
        )

    def _bind_inputs(
        self, context: ConfiguredContext, inputs: list[torch.Tensor]
    ) -> None:
        for tensor, binding in zip(inputs, self._inputs, strict=True):
            if not context.context.set_input_shape(binding.name, tuple(tensor.shape)):
                raise RuntimeError(
                    f"TensorRT-RTX refused the shape {list(tensor.shape)} of the input "
                    f"'{binding.name}'"
                )
            _bind(context, binding, tensor)

    def _bind_outputs(self, context: ConfiguredContext) -> list[torch.Tensor]:
        try:
            unspecified = context.context.infer_shapes()
        except RuntimeError as error:
            raise RuntimeError(_CAN_NOT_INFER) from error
        if unspecified:
            raise RuntimeError(_CAN_NOT_INFER)
        outputs = []
        for binding in self._outputs:
            shape = tuple(context.context.get_tensor_shape(binding.name))
            if -1 in shape:
                raise RuntimeError(
                    f"The shape of the output '{binding.name}' depends on the inputs' values, "
                    "which is not supported"
                )
            outputs.append(
                torch.empty(shape, dtype=binding.dtype, device=binding.device)
            )
            _bind(context, binding, outputs[-1])
        return outputs

    def _release_context(self) -> None:
        self._stream.synchronize()
        self._close_context()

    def _close_context(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None
        self._shapes.clear()


_CAN_NOT_INFER = (
    "TensorRT-RTX could not infer the shapes of the outputs from those of the inputs"
)


def _bytes_of(plan: torch.Tensor) -> memoryview:
    is_plain = plan.layout == torch.strided and plan.is_cpu and plan.is_contiguous()
    if not is_plain or plan.dtype != torch.uint8 or plan.dim() != 1:
        raise RuntimeError(
            "The plan of an engine must be a contiguous one-dimensional uint8 tensor on the CPU, "
            f"got one of {_dtype_name(plan.dtype)} and shape {list(plan.shape)} on {plan.device}"
        )
    return memory_of(plan).toreadonly()


def _checked(tensor: torch.Tensor, binding: _Binding) -> torch.Tensor:
    """Returns the contiguous form of an input. Raises if the binding does not accept it."""

    def fail(got: object) -> NoReturn:
        raise RuntimeError(
            f"The input '{binding.name}' must be a dense {_dtype_name(binding.dtype)} tensor "
            f"{_ranges(binding)} on {binding.device}, got {got}"
        )

    if not isinstance(tensor, torch.Tensor):
        fail(f"a {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        fail(_layout_name(tensor.layout))
    if tensor.dtype != binding.dtype:
        fail(_dtype_name(tensor.dtype))
    if tensor.device != binding.device:
        fail(tensor.device)
    shape = tensor.shape
    if len(shape) != len(binding.min) or not all(
        low <= extent <= high
        for low, extent, high in zip(binding.min, shape, binding.max, strict=True)
    ):
        fail(list(shape))
    return tensor.contiguous()


def _bind(context: ConfiguredContext, binding: _Binding, tensor: torch.Tensor) -> None:
    address = address_of(tensor)
    if tensor.numel() == 0:
        address = ctypes.addressof(_NOTHING)
    if not context.context.set_tensor_address(binding.name, address):
        raise RuntimeError(
            f"TensorRT-RTX refused the memory of '{binding.name}' at {address:#x}"
        )


def _dtype_name(dtype: torch.dtype) -> str:
    """Returns the name that the C++ runtime prints: Float for torch.float32."""
    return torch.empty(0, dtype=dtype).type().rpartition(".")[2].removesuffix("Tensor")


def _layout_name(layout: torch.layout) -> str:
    """Returns the name that the C++ runtime prints.

    It prints SparseCsr for torch.sparse_csr, and Sparse for torch.sparse_coo.
    """
    name = str(layout).removeprefix("torch.").removesuffix("_coo")
    return name.title().replace("_", "")


def _ranges(binding: _Binding) -> str:
    """Returns a text like "[1 to 8, 3]"."""
    extents = zip(binding.min, binding.max, strict=True)
    return f"[{', '.join(str(a) if a == b else f'{a} to {b}' for a, b in extents)}]"


def _joined(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
