"""The small models that a check on a GPU runs, and their inputs; no package but torch is needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Case:
    """A model in one precision.

    Attributes:
        name: Unique, and a file's name.
        architecture: "mlp" or "convolution".
        dtype: Of parameters, input and output.
        shape: The input's.
        batches: Least, tuned-for and greatest size of dimension 0, if that is dynamic.
        bound: How far the engine's output y may be from eager torch's r, as |y - r| / |r| in the
            Euclidean norm. An engine may multiply float32 as TF32, which like float16 has a
            mantissa of 10 bits, so a rounding error of 2^-11 = 0.0005 per product; with float16
            each layer's result is rounded as well.
    """

    name: str
    architecture: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    batches: tuple[int, int, int] | None
    bound: float

    @property
    def batch_sizes(self) -> list[int]:
        """The sizes of dimension 0 to try: the ends, the tuned-for one, and an odd one."""
        if self.batches is None:
            return [self.shape[0]]
        least, tuned, greatest = self.batches
        return sorted({least, tuned, greatest, greatest - 1})


_ARCHITECTURES: dict[str, tuple[tuple[int, ...], tuple[int, int, int] | None]] = {
    "mlp": ((8, 64), None),
    "convolution": ((2, 3, 32, 32), None),
    "dynamic": ((4, 64), (1, 4, 16)),
}

_PRECISIONS = {"float32": (torch.float32, 2e-3), "float16": (torch.float16, 5e-3)}

CASES = {
    f"{architecture}_{precision}": Case(
        f"{architecture}_{precision}", architecture, dtype, shape, batches, bound
    )
    for architecture, (shape, batches) in _ARCHITECTURES.items()
    for precision, (dtype, bound) in _PRECISIONS.items()
}


def make_model(case: Case) -> nn.Module:
    """The model on the CPU, in eval mode, with parameters of torch's own initialization."""
    torch.manual_seed(0)
    if case.architecture == "convolution":
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
        # Other widths, lest the dynamic one shares kernels with the other.
        width = 128 if case.architecture == "mlp" else 96
        layers = [
            nn.Linear(64, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, 10),
        ]
    return nn.Sequential(*layers).to(case.dtype).eval()


def make_input(case: Case, batch: int | None = None, seed: int = 1) -> torch.Tensor:
    """A normally distributed input on the CPU; `batch` is the size of dimension 0."""
    generator = torch.Generator().manual_seed(seed)
    shape = case.shape if batch is None else (batch, *case.shape[1:])
    return torch.randn(shape, generator=generator).to(case.dtype)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """|actual - expected| / |expected| in the Euclidean norm, in float64; NaN is infinite."""
    reference = expected.detach().double().cpu()
    difference = torch.linalg.vector_norm(actual.detach().double().cpu() - reference)
    error = float(difference / torch.linalg.vector_norm(reference))
    return error if error == error else float("inf")
