"""The models that the questions run, and their engines, which are built without a GPU.

python -m tools.gpu.plans DIR writes the engines.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt
import torch
from torch import nn

import torch_tensorrt
from torch_tensorrt.runtime import RuntimeSettings

# The two engines and the dynamic one of the questions about caches.
FIRST, SECOND, DYNAMIC = "mlp_float32", "convolution_float32", "dynamic_float32"

# All that this version of TensorRT-RTX knows, except Turing's, for which 1.7 does not multiply
# float32 matrices.
COMPUTE_CAPABILITIES = [
    divmod(int(name.removeprefix("SM")), 10)
    for name in trt.ComputeCapability.__members__
    if name.startswith("SM") and name != "SM75"
]


@dataclass(frozen=True)
class Case:
    """A model in one precision.

    Attributes:
        name: Unique, and a file's name.
        shape: The input's. The engine is tuned for it.
        batches: The sizes of dimension 0 to try. It is dynamic if there are several.
        bound: The largest `relative_error` that the engine's output may have, beside eager torch's.
            docs/gpu-results.md has the reason for the numbers.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    batches: tuple[int, ...]
    bound: float

    def make_model(self) -> nn.Module:
        """Returns the model on the CPU, in eval mode, with torch's own initial parameters."""
        torch.manual_seed(0)
        if self.name.startswith("convolution"):
            layers: list[nn.Module] = [
                nn.Conv2d(3, 16, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(32, 10),
            ]
        else:
            # Different widths, so that the two have no kernels in common.
            width = 128 if self.name.startswith("mlp") else 96
            layers = [
                nn.Linear(64, width),
                nn.GELU(),
                nn.Linear(width, width),
                nn.GELU(),
                nn.Linear(width, 10),
            ]
        return nn.Sequential(*layers).to(self.dtype).eval()

    def make_input(self, batch: int | None = None) -> torch.Tensor:
        """Returns a normally distributed input on the CPU. `batch` is the size of dimension 0."""
        shape = (batch or self.shape[0], *self.shape[1:])
        generator = torch.Generator().manual_seed(1)
        return torch.randn(shape, generator=generator).to(self.dtype)


_SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "mlp": ((8, 64), (8,)),
    "convolution": ((2, 3, 32, 32), (2,)),
    "dynamic": ((4, 64), (1, 4, 15, 16)),
}
_BOUNDS = {torch.float32: 2e-3, torch.float16: 5e-3}

CASES = {
    name: Case(name, dtype, shape, batches, bound)
    for kind, (shape, batches) in _SHAPES.items()
    for dtype, bound in _BOUNDS.items()
    for name in [f"{kind}_{str(dtype).removeprefix('torch.')}"]
}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns |actual - expected| / |expected| in the Euclidean norm, in float64."""
    reference = expected.double().cpu()
    difference = torch.linalg.vector_norm(actual.double().cpu() - reference)
    return float(difference / torch.linalg.vector_norm(reference))


def _build(
    model: nn.Module, x: torch.Tensor, path: Path, dynamic_shapes: Any = None
) -> None:
    torch_tensorrt.compile(
        model,
        arg_inputs=(x,),
        dynamic_shapes=dynamic_shapes,
        compute_capabilities=COMPUTE_CAPABILITIES,
        runtime_settings=RuntimeSettings(),
    ).save(path)


def build_case(case: Case, folder: Path) -> None:
    """Writes the engine, and its weights, which another version of torch may make differently."""
    shapes = None
    if len(case.batches) > 1:
        least, greatest = min(case.batches), max(case.batches)
        shapes = ({0: torch.export.Dim("batch", min=least, max=greatest)},)
    model = case.make_model()
    _build(model, case.make_input(), folder / f"{case.name}.engine", shapes)
    torch.save(model.state_dict(), folder / f"{case.name}.weights.pt")


def build_relu_engines(folder: Path, widths: Iterable[int]) -> None:
    """Writes an engine for each width, which computes y = relu(x) of a float32 [1, width]."""
    folder.mkdir(exist_ok=True)
    for width in widths:
        linear = nn.Linear(width, width, bias=False)
        nn.init.eye_(linear.weight)
        model = nn.Sequential(linear, nn.ReLU()).eval()
        _build(model, torch.zeros(1, width), folder / f"{width}.engine")


def build_all(folder: Path) -> None:
    """Writes the engines of all cases, and `relu`, a folder of engines for tests/py."""
    folder.mkdir(exist_ok=True)
    for case in CASES.values():
        build_case(case, folder)
    build_relu_engines(folder / "relu", range(64, 192, 8))


if __name__ == "__main__":
    build_all(Path(sys.argv[1]))
