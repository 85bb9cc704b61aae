"""From a torch module to an engine, and engines in files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torch_tensorrt.dynamo.runtime import (
    PythonTorchTensorRTModule,
    TorchTensorRTModule,
)
from torch_tensorrt.runtime._cache.default_cache_path import default_runtime_cache_path
from torch_tensorrt.runtime._engine.engine_file import load_engine_file
from torch_tensorrt.runtime._engine.engine_module import EngineModule
from torch_tensorrt.runtime._runtime_settings import RuntimeSettings, check_settings


def compile(
    module: torch.nn.Module,
    arg_inputs: Sequence[Any] = (),
    kwarg_inputs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    compute_capabilities: Sequence[str | tuple[int, int]] | None = None,
    runtime_settings: RuntimeSettings | None = None,
    use_python_runtime: bool = False,
) -> EngineModule:
    """Builds a TensorRT-RTX engine of a whole module, ahead of time and on the CPU.

    torch exports the module to ONNX, TensorRT-RTX builds the engine of that; a GPU is needed for
    neither. Kernels are compiled when the engine runs, and kept in its runtime cache.

    The module that comes back takes the tensors of the example inputs: by position, first those of
    `arg_inputs` and then those of `kwarg_inputs`, or by the names of `module`'s arguments. Tensors
    in lists, tuples and dicts are inputs of their own. It returns a tensor, or a tuple of all
    tensors that `module` returns. dtypes are those of `module`: float32, float16, bfloat16, int32,
    int64, bool, and what else TensorRT-RTX has.

    Args:
        module: in eval mode, on any device. It is not changed.
        arg_inputs: example tensors for the positional arguments, on the module's device. Their
            shapes are the engine's but for dynamic ones, for which it is tuned to them. Their
            contents are not used.
        kwarg_inputs: likewise for the keyword arguments.
        dynamic_shapes: as `torch.export.export` takes them. Each dynamic dimension needs a maximum:
            `{"x": {0: torch.export.Dim("batch", min=1, max=32)}}`; its minimum is 1 if not given.
        compute_capabilities: of the GPUs that the engine is for, as in `["8.6", (12, 0)]`. With
            None it is for the current GPU of this machine.
        runtime_settings: with None, the default ones and a cache at `default_runtime_cache_path()`.
        use_python_runtime: True for a `PythonTorchTensorRTModule`, else it is a
            `TorchTensorRTModule`.

    Raises:
        ImportError: onnx or onnxscript is missing, which the wheel's extra `compile` installs.
        TypeError, ValueError: an argument that can't be served, or a module that is in training
            mode or writes to its inputs or buffers.
        UnsupportedOperatorError: (a RuntimeError) ONNX or TensorRT-RTX lacks an operator, which it
            names with its place in the module's code. There is no falling back to torch.
        RuntimeError: the module can't be captured as one graph; the build failed; or
            `compute_capabilities` is None where there is no GPU.

    Not thread-safe, as `torch.export` is not.
    """
    # Here, so that only who compiles waits for the import of what compiling needs.
    from torch_tensorrt._onnx_export import export_to_onnx
    from torch_tensorrt._plan_builder import build_plan, parse_compute_capabilities

    if runtime_settings is not None:
        check_settings(runtime_settings)  # rather than after building an engine
    capabilities = parse_compute_capabilities(compute_capabilities)
    model = export_to_onnx(module, arg_inputs, kwarg_inputs, dynamic_shapes)
    return _make_module(
        torch.frombuffer(build_plan(model, capabilities), dtype=torch.uint8),
        [i.name for i in model.inputs],
        [o.name for o in model.outputs],
        type(module).__name__,
        runtime_settings or _default_settings(),
        use_python_runtime,
    )


def load(
    path: str | os.PathLike[str],
    *,
    runtime_settings: RuntimeSettings | None = None,
    use_python_runtime: bool = False,
) -> EngineModule:
    """The module that `module.save(path)` wrote, of a result of `compile` or any other.

    The plan is checked against the SHA-256 in the file, which files of earlier versions lack.

    Args:
        path: an engine file. It must not be written in place while the module lives; `save` never
            does that.
        runtime_settings: with None, the strategies of the saved module and a cache at
            `default_runtime_cache_path()`.
        use_python_runtime: as for `compile`.

    Raises:
        OSError: there is no such file, or it can't be read.
        ValueError: it is no engine file, damaged, or of a later version of this package.
    """
    engine = load_engine_file(path)
    settings = runtime_settings or _default_settings().merge(
        dynamic_shapes_kernel_specialization_strategy=(
            engine.dynamic_shapes_kernel_specialization_strategy
        ),
        cuda_graph_strategy=engine.cuda_graph_strategy,
    )
    return _make_module(
        engine.plan,
        engine.input_binding_names,
        engine.output_binding_names,
        engine.name,
        settings,
        use_python_runtime,
    )


def _default_settings() -> RuntimeSettings:
    return RuntimeSettings(runtime_cache=default_runtime_cache_path())


def _make_module(
    plan: torch.Tensor,
    input_binding_names: list[str],
    output_binding_names: list[str],
    name: str,
    settings: RuntimeSettings,
    use_python_runtime: bool,
) -> EngineModule:
    kind = PythonTorchTensorRTModule if use_python_runtime else TorchTensorRTModule
    return kind(
        plan,
        input_binding_names,
        output_binding_names,
        name=name,
        runtime_settings=settings,
    )
