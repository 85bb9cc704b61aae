"""Exports torch modules to ONNX models with torch's own exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.export.graph_signature import ConstantArgument, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from torch_tensorrt._errors import UnsupportedOperatorError

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

_logger = logging.getLogger(__name__)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ExportedInput:
    """An input of an exported model, and the shapes that it may have.

    `opt` is the example's shape. Without dynamic dimensions, all three are equal.
    """

    name: str
    dtype: torch.dtype
    min: Shape
    opt: Shape
    max: Shape


@dataclass(frozen=True)
class ExportedOutput:
    """An output of an exported model."""

    name: str
    dtype: torch.dtype


@dataclass(frozen=True)
class ExportedModel:
    """A module as an ONNX model. Inputs and outputs are in the model's order."""

    program: ONNXProgram
    inputs: tuple[ExportedInput, ...]
    outputs: tuple[ExportedOutput, ...]


def export_to_onnx(
    module: torch.nn.Module,
    arg_inputs: Sequence[Any],
    kwarg_inputs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> ExportedModel:
    """Exports on the device of the module, without running it. Takes seconds. Not thread-safe.

    Raises:
        ImportError: onnx or onnxscript is missing.
        TypeError, ValueError: The module is in training mode or changes its own state, an input or
            output is not a tensor, or a dynamic dimension has no maximum.
        UnsupportedOperatorError: ONNX lacks an operator.
        RuntimeError: torch can't capture the module as one graph.
    """
    _require_onnx()
    _check_module(module)
    args, kwargs = _checked_inputs(arg_inputs, kwarg_inputs)
    with _quiet_exporters(), torch.no_grad():
        program = _capture(module, args, kwargs, dynamic_shapes)
        inputs = _inputs(program)
        outputs = _outputs(program, taken={i.name for i in inputs})
        onnx_program = _convert(module, program, inputs, outputs)
    _check_no_state(module, onnx_program)
    return ExportedModel(onnx_program, inputs, outputs)


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "torch_tensorrt.compile needs onnx and onnxscript "
            f'({error}): pip install "torch-tensorrt-rtx-runtime[compile]"'
        ) from error


def _check_module(module: object) -> None:
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"Only a torch.nn.Module can be compiled, not a {type(module).__name__}"
        )
    training = [name for name, part in module.named_modules() if part.training]
    if training:
        # Not switched here, because that would surprise a caller that continues to train it.
        which = f" ('{training[0]}' is)" if training[0] else ""
        raise ValueError(
            f"{type(module).__name__} is in training mode{which}, but an engine only infers: "
            "call its eval() first"
        )


def _checked_inputs(
    arg_inputs: object, kwarg_inputs: object
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not isinstance(arg_inputs, (tuple, list)):
        raise TypeError(
            "arg_inputs must be a tuple of the example inputs, as in (x,), "
            f"not a {type(arg_inputs).__name__}"
        )
    if kwarg_inputs is not None and not isinstance(kwarg_inputs, Mapping):
        raise TypeError(
            "kwarg_inputs must be a mapping of names to example inputs, "
            f"not a {type(kwarg_inputs).__name__}"
        )
    args, kwargs = tuple(arg_inputs), dict(kwarg_inputs or {})
    leaves = [
        (f"{group}{pytree.keystr(path)}", leaf)
        for group, inputs in (("arg_inputs", args), ("kwarg_inputs", kwargs))
        for path, leaf in pytree.tree_leaves_with_path(inputs)
    ]
    for which, leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            raise TypeError(
                f"{which} is {leaf!r}, of type {type(leaf).__name__}; an engine only takes tensors"
            )
    if not leaves:
        raise ValueError(
            "An engine needs an input: arg_inputs and kwarg_inputs have none"
        )
    return args, kwargs


@contextlib.contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Silences messages of the exporters about their progress and about other packages."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    told = io.StringIO()
    try:
        # torch.export prints the graph so far to stderr when it fails.
        with warnings.catch_warnings(), contextlib.redirect_stderr(told):
            # Modules such as LSTM cause it, because they also keep their parameters in a list.
            warnings.filterwarnings(
                "ignore", "The tensor attribute.* assigned during export"
            )
            yield
    finally:
        if told.getvalue():
            _logger.debug("torch.export: %s", told.getvalue())
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _capture(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(
            module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
        )
    except Exception as error:
        raise RuntimeError(
            f"torch.export can't export {type(module).__name__} as one graph: "
            f"{_essence(str(error))}"
        ) from error


def _essence(message: str) -> str:
    """Returns what happened and where, without torch.export's advice on its own tools."""
    first, *others = message.strip().split("\n\n")
    return "\n".join([first, *(other for other in others if 'File "' in other)])


def _inputs(program: torch.export.ExportedProgram) -> tuple[ExportedInput, ...]:
    names = set(program.graph_signature.user_inputs)
    examples = pytree.tree_leaves(program.example_inputs)
    placeholders = [
        node
        for node in program.graph.find_nodes(op="placeholder")
        if node.name in names
    ]
    inputs = []
    for node, example in zip(placeholders, examples, strict=True):
        value = node.meta["val"]
        ranges = [_range(program, node.name, i, n) for i, n in enumerate(value.shape)]
        inputs.append(
            ExportedInput(
                node.name,
                value.dtype,
                min=tuple(low for low, _ in ranges),
                opt=tuple(example.shape),
                max=tuple(high for _, high in ranges),
            )
        )
    return tuple(inputs)


def _range(
    program: torch.export.ExportedProgram,
    name: str,
    dimension: int,
    size: int | torch.SymInt,
) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    limits = program.range_constraints[size.node.expr]
    if not math.isfinite(limits.upper):
        raise ValueError(
            f"Dimension {dimension} of the input '{name}' is dynamic without a maximum, and "
            "TensorRT-RTX needs one: give it in dynamic_shapes, as in "
            'torch.export.Dim("batch", min=1, max=32)'
        )
    # A torch.export.Dim with only a maximum begins at 0, which nobody means.
    return max(1, int(limits.lower)), int(limits.upper)


def _outputs(
    program: torch.export.ExportedProgram, taken: set[str]
) -> tuple[ExportedOutput, ...]:
    (output,) = program.graph.find_nodes(op="output")
    specs = program.graph_signature.output_specs
    prefix = "output"
    while any(f"{prefix}{i}" in taken for i in range(len(specs))):
        prefix = f"_{prefix}"
    outputs: list[ExportedOutput] = []
    for spec, node in zip(specs, output.args[0], strict=True):
        if spec.kind != OutputKind.USER_OUTPUT:
            continue
        if not isinstance(spec.arg, TensorArgument):
            value = spec.arg.value if isinstance(spec.arg, ConstantArgument) else node
            raise ValueError(
                f"Output {len(outputs)} of the module is {value!r}; an engine only returns tensors"
            )
        outputs.append(
            ExportedOutput(f"{prefix}{len(outputs)}", node.meta["val"].dtype)
        )
    return tuple(outputs)


def _check_no_state(module: torch.nn.Module, program: ONNXProgram) -> None:
    # Writes show only in the signature of the program that the exporter decomposed.
    assert program.exported_program is not None
    signature = program.exported_program.graph_signature
    changed = [
        *signature.buffers_to_mutate.values(),
        *signature.user_inputs_to_mutate.values(),
    ]
    if changed:
        raise ValueError(
            f"{type(module).__name__} writes to {', '.join(map(repr, changed))} in forward; "
            "an engine changes neither its inputs nor a state of its own"
        )


def _convert(
    module: torch.nn.Module,
    program: torch.export.ExportedProgram,
    inputs: Sequence[ExportedInput],
    outputs: Sequence[ExportedOutput],
) -> ONNXProgram:
    try:
        converted = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            input_names=[i.name for i in inputs],
            output_names=[o.name for o in outputs],
        )
    except torch.onnx.OnnxExporterError as error:
        node, reason = _innermost(error)
        if node is None:
            raise RuntimeError(
                f"torch.onnx can't convert {type(module).__name__}: {reason}"
            ) from error
        operator = str(node.target)
        place = code_location(node.meta.get("stack_trace"))
        raise UnsupportedOperatorError(
            f"torch.onnx can't convert the operator {operator} of {type(module).__name__}"
            f"{place}: {reason}",
            [operator],
        ) from error
    assert converted is not None
    return converted


def _innermost(error: BaseException) -> tuple[torch.fx.Node | None, str]:
    """Returns the node at which the exporter failed, and the first line of the reason."""
    node = None
    cause: BaseException | None = error
    while cause is not None:
        error, traceback = cause, cause.__traceback__
        while traceback is not None:
            # The exporter's exceptions only have the node's name in their text, without a location.
            candidate = traceback.tb_frame.f_locals.get("node")
            if isinstance(candidate, torch.fx.Node):
                node = candidate
            traceback = traceback.tb_next
        cause = cause.__cause__
    return node, f"{error}".split("\n", 1)[0]


def code_location(stack_trace: str | None) -> str:
    """Returns ` at "FILE", line N, in F: CODE` for the last call of a stack trace, or ""."""
    lines = [line.strip() for line in (stack_trace or "").splitlines()]
    calls = [i for i, line in enumerate(lines) if line.startswith("File ")]
    if not calls:
        return ""
    call, *code = lines[calls[-1] : calls[-1] + 2]
    return f" at {call.removeprefix('File ')}" + "".join(f": {line}" for line in code)
