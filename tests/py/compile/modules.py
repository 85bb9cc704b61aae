"""Modules to compile. Each is here for a feature that its docstring names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import Dim


class ConvNet(torch.nn.Module):
    """Layers that behave differently in training mode: batch normalization and dropout."""

    def __init__(self) -> None:
        super().__init__()
        norm = torch.nn.BatchNorm2d(8)
        norm.running_mean = torch.rand(8)
        norm.running_var = torch.rand(8) + 0.5
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1),
            norm,
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
        )
        self.dropout = torch.nn.Dropout()
        self.classifier = torch.nn.Linear(8 * 16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(self.features(image), 4)
        logits: torch.Tensor = self.classifier(self.dropout(pooled.flatten(1)))
        return logits


class Attention(torch.nn.Module):
    """Two dynamic dimensions, an integer input, and several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(100, 16)
        self.attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.embedding(tokens)
        y, weights = self.attention(x, x, x)
        return x + y, weights


class Affine(torch.nn.Module):
    """Keyword arguments, and a parameter with the name of one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor([0.5]))

    def forward(
        self,
        x: torch.Tensor,
        *,
        scale: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        y = x * scale + self.bias
        return {"y": y if bias is None else y + bias, "x": x}


@dataclass
class Case:
    """A module and how it is compiled.

    Attributes:
        other_inputs: More inputs for the same engine, with other shapes where those are dynamic.
        relative_error: The error allowed to an engine, relative to the largest expected number.
    """

    module: torch.nn.Module
    arg_inputs: tuple[Any, ...]
    other_inputs: tuple[torch.Tensor, ...]
    relative_error: float
    kwarg_inputs: dict[str, Any] = field(default_factory=dict)
    dynamic_shapes: dict[str, Any] | None = None

    def compile_arguments(self) -> dict[str, Any]:
        return {
            "arg_inputs": self.arg_inputs,
            "kwarg_inputs": self.kwarg_inputs,
            "dynamic_shapes": self.dynamic_shapes,
        }

    def expected(self, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """The outputs of the module itself for `inputs`. Keyword inputs come last."""
        count = len(self.arg_inputs)
        named = dict(zip(self.kwarg_inputs, inputs[count:], strict=True))
        with torch.no_grad():
            return list(
                torch.utils._pytree.tree_leaves(self.module(*inputs[:count], **named))
            )

    def check(
        self, outputs: list[torch.Tensor], inputs: tuple[torch.Tensor, ...]
    ) -> None:
        expected = self.expected(inputs)
        assert len(outputs) == len(expected)
        for output, wanted in zip(outputs, expected, strict=True):
            assert output.dtype == wanted.dtype
            assert output.shape == wanted.shape
            error = (output.double() - wanted.double()).abs().max().item()
            assert error <= self.relative_error * wanted.double().abs().max().item()


# A GPU may multiply in TensorFloat-32. On these modules that causes an error of 0.6e-3 if it rounds
# factors to 10 bits, and of 1.8e-3 if it truncates them.
TF32_ERROR = 2e-3


def _mlp() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 4)
    )


def make_case(name: str) -> Case:
    """Makes one of CASES, with the same numbers each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        case = _MAKE[name]()
    case.module.eval()
    return case


_MAKE = {
    "mlp": lambda: Case(
        _mlp(),
        (torch.randn(2, 16),),
        (torch.randn(2, 16),),
        relative_error=TF32_ERROR,
    ),
    "float16": lambda: Case(
        _mlp().half(),
        (torch.randn(2, 16).half(),),
        (torch.randn(2, 16).half(),),
        relative_error=1e-2,
    ),
    "convolution": lambda: Case(
        ConvNet(),
        (torch.randn(4, 3, 16, 16),),
        (torch.randn(7, 3, 16, 16),),
        relative_error=TF32_ERROR,
        dynamic_shapes={"image": {0: Dim("batch", min=1, max=8)}},
    ),
    "attention": lambda: Case(
        Attention(),
        (torch.randint(100, (2, 5)),),
        (torch.randint(100, (1, 16)),),
        relative_error=TF32_ERROR,
        dynamic_shapes={
            "tokens": {0: Dim("batch", max=4), 1: Dim("length", min=2, max=16)}
        },
    ),
    "keywords": lambda: Case(
        Affine(),
        (torch.randn(3),),
        (torch.randn(3), torch.randn(1), torch.randn(3)),
        relative_error=1e-4,
        kwarg_inputs={"scale": torch.randn(1), "bias": torch.randn(3)},
    ),
}
CASES = list(_MAKE)
