"""Compiles torch modules to engines, and loads engines from files."""

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
    """Builds a TensorRT-RTX engine from a whole module, ahead of time and on the CPU.

    torch exports the module to ONNX, and TensorRT-RTX builds the engine from that. Neither needs a
    GPU. Kernels are compiled when the engine runs, and are kept in its runtime cache.

    The returned module takes the tensors of the example inputs: by position, first those of
    `arg_inputs` and then those of `kwarg_inputs`, or by the names of `module`'s arguments. Each
    tensor in a list, tuple or dict is an input of its own. The module returns a tensor, or a tuple
    of all tensors that `module` returns. The dtypes are those of `module`: float32, float16,
    bfloat16, int32, int64, bool, and others that TensorRT-RTX supports.

    Args:
        module: The module to compile, in eval mode, on any device. It is not changed.
        arg_inputs: Example tensors for the positional arguments, on the module's device. The engine
            has their shapes. In dynamic dimensions it is tuned for them. Their contents are not
            used.
        kwarg_inputs: Example tensors for the keyword arguments, with the same rules.
        dynamic_shapes: As for `torch.export.export`. Each dynamic dimension needs a maximum:
            `{"x": {0: torch.export.Dim("batch", min=1, max=32)}}`. The default minimum is 1.
        compute_capabilities: Those of the GPUs that the engine is for, such as `["8.6", (12, 0)]`.
            None means that of the current GPU.
        runtime_settings: None means the default ones, with a cache at
            `default_runtime_cache_path()`.
        use_python_runtime: True returns a `PythonTorchTensorRTModule`, False a
            `TorchTensorRTModule`.

    Raises:
        ImportError: onnx or onnxscript is missing. The wheel's extra `compile` installs both. Or as
            for `EngineModule.runtime_settings`.
        TypeError, ValueError: An argument is unsupported, or the module is in training mode or
            writes to its inputs or buffers.
        UnsupportedOperatorError: ONNX or TensorRT-RTX lacks an operator. The message has its name
            and its place in the module's code. Nothing falls back to torch. It is a RuntimeError.
        RuntimeError: The module can't be captured as one graph, the build failed, or
            `compute_capabilities` is None and there is no GPU.

    Not thread-safe, because `torch.export` is not.
    """
    # Imported here, so that only callers of compile() wait for these imports.
    from torch_tensorrt._onnx_export import export_to_onnx
    from torch_tensorrt._plan_builder import build_plan, parse_compute_capabilities

    if runtime_settings is not None:
        check_settings(runtime_settings)  # before the slow build
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
    """Loads a module that `module.save(path)` wrote, whether `compile` made it or not.

    The plan is checked against the SHA-256 in the file. Files of earlier versions have none and are
    not checked.

    Args:
        path: An engine file. It must not be written in place while the module lives. `save` never
            does that.
        runtime_settings: None means the strategies of the saved module, and a cache at
            `default_runtime_cache_path()`.
        use_python_runtime: As for `compile`.

    Raises:
        OSError: The file is missing or can't be read.
        ValueError: The file is not an engine file, is damaged, or is from a later version of this
            package.
        ImportError, RuntimeError: As for `EngineModule.runtime_settings`.
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
