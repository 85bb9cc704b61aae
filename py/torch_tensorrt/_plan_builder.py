"""Builds serialized engines from ONNX models, with TensorRT-RTX on the CPU."""

from __future__ import annotations

import ast
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorrt_rtx as trt
import torch

from torch_tensorrt._errors import UnsupportedOperatorError
from torch_tensorrt._onnx_export import (
    ExportedInput,
    ExportedModel,
    ExportedOutput,
    code_location,
)

if TYPE_CHECKING:
    import onnx_ir

_logger = logging.getLogger(__name__)

_DTYPES = {
    trt.DataType.FLOAT: torch.float32,
    trt.DataType.HALF: torch.float16,
    trt.DataType.BF16: torch.bfloat16,
    trt.DataType.INT8: torch.int8,
    trt.DataType.UINT8: torch.uint8,
    trt.DataType.INT32: torch.int32,
    trt.DataType.INT64: torch.int64,
    trt.DataType.BOOL: torch.bool,
    trt.DataType.FP8: torch.float8_e4m3fn,
}


def _known_capabilities() -> dict[tuple[int, int], Any]:
    return {
        divmod(int(name.removeprefix("SM")), 10): member
        for name, member in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }


def parse_compute_capabilities(
    capabilities: Iterable[str | tuple[int, int]] | None,
) -> list[tuple[int, int]]:
    """Returns the named compute capabilities, each once. None means the current CUDA device's.

    Raises:
        ValueError: TensorRT-RTX does not know a capability, or there are none.
        RuntimeError: `capabilities` is None and there is no GPU.
    """
    if capabilities is None:
        if not torch.cuda.is_available():
            raise RuntimeError(
                "There is no GPU here to build an engine for; name the compute capabilities of the "
                f'GPUs that will run it, as in compute_capabilities=["8.6"]: {_list_of_known()}'
            )
        return [_checked_capability(torch.cuda.get_device_capability(), "This GPU's ")]
    if isinstance(capabilities, str) or not isinstance(capabilities, Iterable):
        raise ValueError(
            f'compute_capabilities must be a list, as in ["8.6", (8, 9)], not {capabilities!r}'
        )
    parsed = list(dict.fromkeys(_checked_capability(c, "The ") for c in capabilities))
    if not parsed:
        raise ValueError(f"compute_capabilities is empty; {_list_of_known()}")
    return parsed


def _checked_capability(capability: object, whose: str) -> tuple[int, int]:
    parsed = capability
    if isinstance(capability, str) and re.fullmatch(r"\d+\.\d", capability):
        major, minor = capability.split(".")
        parsed = int(major), int(minor)
    for known in _known_capabilities():
        if parsed == known:
            return known
    shown = (
        ".".join(map(str, parsed)) if isinstance(parsed, tuple) else repr(capability)
    )
    raise ValueError(
        f"{whose}compute capability {shown} is not one that an engine can be built for; "
        f"{_list_of_known()}"
    )


def _list_of_known() -> str:
    known = ", ".join(f"{major}.{minor}" for major, minor in _known_capabilities())
    return f"TensorRT-RTX {trt.__version__} knows {known}"


class _Logger(trt.ILogger):  # type: ignore[misc]
    """Keeps the errors of one build, and logs warnings at level DEBUG."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message.strip())
        elif severity == trt.ILogger.WARNING:
            _logger.debug("TensorRT-RTX: %s", message)


@cache
def _tensorrt_logger() -> _Logger:
    # TensorRT-RTX uses the first logger for everything until the last builder and runtime are
    # destroyed: an engine that another thread loads during a build may use it afterwards.
    return _Logger()


_build = threading.Lock()  # guards the errors of _tensorrt_logger()


def _start_over_in_child() -> None:
    global _build
    _build = threading.Lock()  # a thread of the parent may hold the old one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over_in_child)


def build_plan(
    model: ExportedModel, capabilities: Sequence[tuple[int, int]]
) -> bytearray:
    """Builds an engine for GPUs of the given compute capabilities, on the CPU.

    Its bindings have the names and the order of the model's inputs and outputs. Thread-safe: builds
    run one after another.

    Raises:
        UnsupportedOperatorError: TensorRT-RTX lacks an operator, or can't use it this way.
        ValueError: TensorRT-RTX lacks a dtype.
        RuntimeError: The build failed for another reason. The message has TensorRT-RTX's reasons.
        OSError: The temporary folder has no space for the model.
    """
    with _build:
        logger = _tensorrt_logger()
        logger.errors.clear()
        builder = trt.Builder(logger)
        network = define_network(builder, logger, model)
        config = configure(builder, model.inputs, capabilities)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise RuntimeError(
                "TensorRT-RTX can't build the engine: "
                + ("; ".join(logger.errors) or "it gave no reason")
            )
        return bytearray(plan)


def define_network(builder: Any, logger: Any, model: ExportedModel) -> Any:
    """Returns the model as an `INetworkDefinition` with its names and dtypes.

    Raises: As `build_plan`.
    """
    _check_dtypes(model)
    network = builder.create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    # The network keeps it alive, because it owns the weights.
    parser = trt.OnnxParser(network, logger)
    _parse(parser, model)
    _check_bindings(network, model)
    return network


def _parse(parser: Any, model: ExportedModel) -> None:
    # Uses a file, because ONNX limits the weights of a model in memory to 2 GiB. Not a
    # TemporaryDirectory, because a child of fork() would remove it at its exit.
    folder = tempfile.mkdtemp(prefix="torch_tensorrt-")
    try:
        path = Path(folder, "model.onnx")
        model.program.save(path, external_data=True)
        if parser.parse_from_file(str(path)):
            return
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    operators: dict[str, Any] = {}  # with the first error of each
    for error in errors:
        if error.node_operator():
            operators.setdefault(error.node_operator(), error)
    if not operators:
        reasons = "; ".join(error.desc() for error in errors)
        raise RuntimeError(f"TensorRT-RTX can't read the exported model: {reasons}")
    graph = model.program.model.graph
    raise UnsupportedOperatorError(
        "TensorRT-RTX can't use "
        + "; ".join(_describe(error, graph) for error in operators.values()),
        list(operators),
    )


def _describe(error: Any, graph: onnx_ir.Graph) -> str:
    description = f"the operator {error.node_operator()}"
    for node in graph:
        if node.name == error.node_name():
            metadata = node.metadata_props
            if classes := metadata.get("pkg.torch.onnx.class_hierarchy"):
                description += f" (from {ast.literal_eval(classes)[-1]})"
            description += code_location(metadata.get("pkg.torch.onnx.stack_trace"))
    return description + _reason(error.desc())


def _reason(text: str) -> str:
    """Returns the parser's reason, without the CUDA calls that fail if there is no GPU."""
    lines = [line for line in text.splitlines() if "cudaError" not in line]
    return "" if lines == ["false"] else f": {', '.join(lines)}"


def _check_dtypes(model: ExportedModel) -> None:
    # Checked here, because the parser takes some dtypes for float32 and prints others to stderr.
    for kind, tensors in ("input", model.inputs), ("output", model.outputs):
        for tensor in tensors:
            if tensor.dtype not in _DTYPES.values():
                raise ValueError(
                    f"The {kind} '{tensor.name}' is of {tensor.dtype}, which TensorRT-RTX lacks"
                )


def _check_bindings(network: Any, model: ExportedModel) -> None:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    _check_tensors("input", model.inputs, inputs)
    _check_tensors("output", model.outputs, outputs)


def _check_tensors(
    kind: str,
    expected: Sequence[ExportedInput | ExportedOutput],
    tensors: Sequence[Any],
) -> None:
    names, found = [e.name for e in expected], [t.name for t in tensors]
    if names != found:
        raise RuntimeError(
            f"TensorRT-RTX changed the {kind}s of the exported model from {names} to {found}"
        )
    for wanted, tensor in zip(expected, tensors, strict=True):
        if _DTYPES.get(tensor.dtype) != wanted.dtype:
            raise RuntimeError(
                f"TensorRT-RTX changed the dtype of the {kind} '{wanted.name}' from {wanted.dtype} "
                f"to {tensor.dtype}"
            )


def configure(
    builder: Any,
    inputs: Sequence[ExportedInput],
    capabilities: Sequence[tuple[int, int]],
) -> Any:
    """Returns an `IBuilderConfig` for these GPUs, with a profile if an input is dynamic."""
    config = builder.create_builder_config()
    known = _known_capabilities()
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(known[capability], index)
    dynamic = [i for i in inputs if i.min != i.max]
    if dynamic:
        profile = builder.create_optimization_profile()
        for i in dynamic:
            profile.set_shape(i.name, i.min, i.opt, i.max)
        config.add_optimization_profile(profile)
    return config
