"""Engines on a machine without a GPU, where TensorRT-RTX can't load one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from torch_tensorrt.dynamo.runtime import PythonTorchTensorRTModule, TorchTensorRTModule
from torch_tensorrt.runtime import RuntimeSettings
from torch_tensorrt.runtime._engine.engine_module import EngineModule
from torch_tensorrt.runtime._engine.trt_engine import TRTEngine

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="this machine has a GPU"
)

PLAN = torch.zeros(16, dtype=torch.uint8)
REASON = "needs an NVIDIA GPU, and torch finds none"


@pytest.mark.parametrize(
    "make",
    [lambda *plan: torch.classes.tensorrt.Engine(*plan), TRTEngine],
    ids=["cpp", "python"],
)
def test_constructing_one_says_what_it_lacks(make: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match=REASON):
        make(PLAN, ["x"], ["y"])


@pytest.mark.parametrize(
    "kind",
    [
        partial(TorchTensorRTModule, use_python_runtime=False),
        PythonTorchTensorRTModule,
    ],
    ids=["cpp", "python"],
)
def test_a_module_can_be_made_but_not_run(kind: Callable[..., EngineModule]) -> None:
    settings = RuntimeSettings("none", runtime_cache="cache.bin")
    module = kind(PLAN, ["x"], ["y"], runtime_settings=settings)
    module.runtime_settings = settings.merge(runtime_cache=None)
    for use in (module.setup_engine, partial(module, torch.zeros(4))):
        with pytest.raises(RuntimeError, match=REASON):
            use()
