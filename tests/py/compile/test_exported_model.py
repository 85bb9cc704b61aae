"""What compile passes to TensorRT-RTX: the ONNX model's numbers, and the network made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import tensorrt_rtx as trt
import torch
from onnx.reference import ReferenceEvaluator

from tests.py.compile.modules import CASES, Case, make_case
from torch_tensorrt._onnx_export import ExportedModel, export_to_onnx
from torch_tensorrt._plan_builder import configure, define_network

NAMES = {
    "mlp": (["input"], ["output0"]),
    "float16": (["input"], ["output0"]),
    "convolution": (["image"], ["output0"]),
    "attention": (["tokens"], ["output0", "output1"]),
    "keywords": (["x", "scale", "bias"], ["output0", "output1"]),
}
# The min, opt and max shapes of the inputs with a profile.
PROFILES: dict[str, dict[str, list[tuple[int, ...]]]] = {
    "convolution": {"image": [(1, 3, 16, 16), (4, 3, 16, 16), (8, 3, 16, 16)]},
    "attention": {"tokens": [(1, 2), (2, 5), (4, 16)]},
}


@dataclass
class Exported:
    name: str
    case: Case
    model: ExportedModel


@pytest.fixture(scope="module", params=CASES)
def exported(request: pytest.FixtureRequest) -> Exported:
    case = make_case(request.param)
    arguments = case.compile_arguments()
    model = export_to_onnx(case.module, **arguments)
    return Exported(request.param, case, model)


@pytest.mark.parametrize("which", ["example", "other"])
def test_it_computes_what_the_module_does(exported: Exported, which: str) -> None:
    case = exported.case
    inputs = (*case.arg_inputs, *case.kwarg_inputs.values())
    if which == "other":
        inputs = case.other_inputs
    names, _ = NAMES[exported.name]
    evaluator = ReferenceEvaluator(exported.model.program.model_proto)
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    outputs = evaluator.run(None, feeds)
    case.check([torch.as_tensor(output) for output in outputs], inputs)


class _Silent(trt.ILogger):  # type: ignore[misc]
    def log(self, severity: Any, message: str) -> None:
        pass


def test_the_network_has_its_names_shapes_dtypes_and_profile(
    exported: Exported,
) -> None:
    model, case = exported.model, exported.case
    logger = _Silent()
    builder = trt.Builder(logger)
    network = define_network(builder, logger, model)

    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    names = [tensor.name for tensor in inputs], [tensor.name for tensor in outputs]
    assert names == NAMES[exported.name]

    profiles = PROFILES.get(exported.name, {})
    examples = [*case.arg_inputs, *case.kwarg_inputs.values()]
    for tensor, example in zip(inputs, examples, strict=True):
        assert trt.nptype(tensor.dtype) == example.numpy().dtype
        smallest, _, largest = profiles.get(tensor.name, [tuple(example.shape)] * 3)
        shape = [
            low if low == high else -1
            for low, high in zip(smallest, largest, strict=True)
        ]
        assert list(tensor.shape) == shape
    for tensor, wanted in zip(outputs, case.expected(tuple(examples)), strict=True):
        assert trt.nptype(tensor.dtype) == wanted.numpy().dtype
        assert len(tensor.shape) == wanted.dim()

    config = configure(builder, model.inputs, [(8, 6), (12, 0)])
    assert config.num_optimization_profiles == bool(profiles)
    capabilities = [config.get_compute_capability(i) for i in range(2)]
    assert capabilities == [trt.ComputeCapability.SM86, trt.ComputeCapability.SM120]
    for described in model.inputs:
        shapes = [described.min, described.opt, described.max]
        assert shapes == profiles.get(described.name, [described.opt] * 3)
