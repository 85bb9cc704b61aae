"""The C++ engine on a machine without a GPU, where TensorRT-RTX can't load one."""

import pytest
import torch

import torch_tensorrt  # noqa: F401  registers the class


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_constructing_one_says_what_it_lacks() -> None:
    plan = torch.zeros(16, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="needs an NVIDIA GPU, and torch finds none"):
        torch.classes.tensorrt.Engine(plan, ["x"], ["y"])
