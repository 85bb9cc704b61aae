"""The simulated device in the shape of `tensorrt_rtx`, as far as the Python runtime uses that.

Names, arguments and values are those of its bindings, and its enums are used as they are. Where
TensorRT-RTX promises nothing, this module is as strict as possible: no object keeps another alive,
so destroying an object before those that depend on it ends the process
(tests/util/simulation/SimulatedRuntime.h).
"""

from __future__ import annotations

import ctypes
from typing import Any

import tensorrt_rtx as trt
import torch

from torch_tensorrt.runtime._cache.tensor_memory import tensor_of

Dims = tuple[int, ...]


def _tensor(buffer: Any) -> torch.Tensor:
    """A copy of the bytes; the C++ interface takes tensors."""
    return tensor_of(bytearray(buffer))


def _host_memory(tensor: torch.Tensor | None) -> Any:
    """An object with `nbytes` that is a buffer, like `IHostMemory`. Works without numpy."""
    if tensor is None:
        return None
    buffer: Any = (ctypes.c_ubyte * tensor.numel()).from_address(tensor.data_ptr())
    buffer.owner = tensor  # keeps the memory alive as long as a view
    return memoryview(buffer)


def _wrapped(wrapper: type, implementation: Any) -> Any:
    return None if implementation is None else wrapper(implementation)


class IRuntimeCache:
    def __init__(self, implementation: Any) -> None:
        self._implementation = implementation

    def serialize(self) -> Any:
        return _host_memory(self._implementation.serialize())

    def deserialize(self, blob: Any) -> bool:
        done: bool = self._implementation.deserialize(_tensor(blob))
        return done

    def reset(self) -> bool:
        done: bool = self._implementation.reset()
        return done


class IRuntimeConfig:
    def __init__(self, implementation: Any) -> None:
        self._implementation = implementation

    def create_runtime_cache(self) -> IRuntimeCache | None:
        cache: IRuntimeCache | None = _wrapped(
            IRuntimeCache, self._implementation.create_runtime_cache()
        )
        return cache

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        done: bool = self._implementation.set_runtime_cache(cache._implementation)
        return done

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> Any:
        return trt.DynamicShapesKernelSpecializationStrategy(
            self._implementation.dynamic_shapes_kernel_specialization_strategy
        )

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, strategy: Any) -> None:
        self._implementation.dynamic_shapes_kernel_specialization_strategy = int(
            strategy
        )

    @property
    def cuda_graph_strategy(self) -> Any:
        return trt.CudaGraphStrategy(self._implementation.get_cuda_graph_strategy())

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, strategy: Any) -> None:
        # A rejected strategy shows only in the getter: a setter can't return a result.
        self._implementation.set_cuda_graph_strategy(int(strategy))


class IExecutionContext:
    def __init__(self, implementation: Any) -> None:
        self._implementation = implementation

    def set_input_shape(self, name: str, shape: tuple[int, ...] | list[int]) -> bool:
        done: bool = self._implementation.set_input_shape(name, list(shape))
        return done

    def get_tensor_shape(self, name: str) -> Dims:
        return tuple(self._implementation.get_tensor_shape(name))

    def infer_shapes(self) -> list[str]:
        names: list[str] | None = self._implementation.infer_shapes()
        if names is None:
            raise RuntimeError("shape inference failed")
        return names

    def set_tensor_address(self, name: str, memory: int) -> bool:
        done: bool = self._implementation.set_tensor_address(name, memory)
        return done

    def is_stream_capturable(self, stream: int) -> bool:
        capturable: bool = self._implementation.is_stream_capturable(stream)
        return capturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        done: bool = self._implementation.execute_async_v3(stream_handle)
        return done


class ICudaEngine:
    def __init__(self, implementation: Any) -> None:
        self._implementation = implementation

    @property
    def num_io_tensors(self) -> int:
        number: int = self._implementation.num_io_tensors
        return number

    def get_tensor_name(self, index: int) -> str:
        name: str = self._implementation.get_tensor_name(index)
        return name

    def get_tensor_mode(self, name: str) -> Any:
        return trt.TensorIOMode(self._implementation.get_tensor_mode(name))

    def get_tensor_dtype(self, name: str) -> Any:
        return trt.DataType(self._implementation.get_tensor_dtype(name))

    def get_tensor_location(self, name: str) -> Any:
        return trt.TensorLocation(self._implementation.get_tensor_location(name))

    def get_tensor_format(self, name: str) -> Any:
        return trt.TensorFormat(self._implementation.get_tensor_format(name))

    def get_tensor_shape(self, name: str) -> Dims:
        return tuple(self._implementation.get_tensor_shape(name))

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        shapes = self._implementation.get_tensor_profile_shape(name, profile_index)
        return [tuple(shape) for shape in shapes]

    def serialize(self) -> Any:
        return _host_memory(self._implementation.serialize())

    def create_runtime_config(self) -> IRuntimeConfig | None:
        config: IRuntimeConfig | None = _wrapped(
            IRuntimeConfig, self._implementation.create_runtime_config()
        )
        return config

    def create_execution_context(
        self, runtime_config: IRuntimeConfig
    ) -> IExecutionContext | None:
        context: IExecutionContext | None = _wrapped(
            IExecutionContext,
            self._implementation.create_execution_context(
                runtime_config._implementation
            ),
        )
        return context


class Runtime:
    """Takes a device where the real one takes a logger."""

    def __init__(self, device: Any) -> None:
        self._implementation = device.create_infer_runtime()
        if self._implementation is None:  # pybind11 does this with a null pointer
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        engine: ICudaEngine | None = _wrapped(
            ICudaEngine,
            self._implementation.deserialize_cuda_engine(_tensor(serialized_engine)),
        )
        return engine
