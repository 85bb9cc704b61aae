"""The models that the questions run, and their engines, which are built without a GPU.

python -m tools.gpu.plans {build_all | build_for_this_gpu} DIR
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
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

# All that this version of TensorRT-RTX knows.
COMPUTE_CAPABILITIES = [
    divmod(int(name.removeprefix("SM")), 10)
    for name in trt.ComputeCapability.__members__
    if name.startswith("SM")
]


@dataclass(frozen=True)
class Case:
    """A model in one precision.

    Attributes:
        name: Unique, and a file's name.
        shape: The input's. The engine is tuned for it.
        batches: The sizes of dimension 0 to try. It is dynamic if there are several.
        bound: The greatest `relative_error` of the engine's output to eager torch's.
            docs/gpu-results.md has the reason for the numbers.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    batches: tuple[int, ...]
    bound: float

    def make_model(self) -> nn.Module:
        """On the CPU, in eval mode, with the parameters of torch's own initialization."""
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
        """A normally distributed input on the CPU; `batch` is the size of dimension 0."""
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
    """|actual - expected| / |expected| in the Euclidean norm, in float64; NaN is infinite."""
    reference = expected.detach().double().cpu()
    difference = torch.linalg.vector_norm(actual.detach().double().cpu() - reference)
    error = float(difference / torch.linalg.vector_norm(reference))
    return error if error == error else float("inf")


def _build(
    model: nn.Module,
    x: torch.Tensor,
    path: Path,
    capabilities: Sequence[tuple[int, int]] | None,
    dynamic_shapes: Any = None,
) -> None:
    torch_tensorrt.compile(
        model,
        arg_inputs=(x,),
        dynamic_shapes=dynamic_shapes,
        compute_capabilities=capabilities,
        runtime_settings=RuntimeSettings(),
    ).save(path)


def build_case(
    case: Case, folder: Path, capabilities: Sequence[tuple[int, int]] | None
) -> None:
    """Writes the engine and the weights, which another version of torch may initialize otherwise.

    Args:
        capabilities: The compute capabilities of the GPUs. None: that of this machine's GPU.
    """
    least, *_, greatest = (*case.batches, case.batches[-1])
    shapes = None
    if least < greatest:
        shapes = ({0: torch.export.Dim("batch", min=least, max=greatest)},)
    model = case.make_model()
    engine = folder / f"{case.name}.engine"
    _build(model, case.make_input(), engine, capabilities, shapes)
    torch.save(model.state_dict(), folder / f"{case.name}.weights.pt")


def build_for_this_gpu(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    build_case(CASES[FIRST], folder, None)


def build_relu_engines(folder: Path, widths: Sequence[int]) -> None:
    """Writes an engine for each width, which computes y = relu(x) of a float32 [1, width]."""
    folder.mkdir(exist_ok=True)
    for width in widths:
        linear = nn.Linear(width, width, bias=False)
        nn.init.eye_(linear.weight)
        model = nn.Sequential(linear, nn.ReLU()).eval()
        path = folder / f"{width}.engine"
        _build(model, torch.zeros(1, width), path, COMPUTE_CAPABILITIES)


def build_all(folder: Path) -> None:
    """Writes the engines of all cases, and `relu`, a folder of engines for tests/py."""
    folder.mkdir(exist_ok=True)
    for case in CASES.values():
        build_case(case, folder, COMPUTE_CAPABILITIES)
    build_relu_engines(folder / "relu", range(64, 192, 8))


if __name__ == "__main__":
    {"build_all": build_all, "build_for_this_gpu": build_for_this_gpu}[sys.argv[1]](
        Path(sys.argv[2])
    )
