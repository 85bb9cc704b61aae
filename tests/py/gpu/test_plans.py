"""Engines for the check are built on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.gpu.plans import CASES, build_case, build_relu_engines, relative_error
from tools.gpu.questions.devices import GpuDevice


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of what plans.py writes."""
    folder = tmp_path_factory.mktemp("plans")
    build_case(CASES["dynamic_float16"], folder)
    build_relu_engines(folder / "relu", range(64, 96, 8))
    return folder


def test_builds_a_plan_and_keeps_the_weights(plans: Path) -> None:
    engine, inputs, outputs = GpuDevice(plans).plan("dynamic_float16")
    assert (inputs, outputs) == (["input"], ["output0"])
    assert 10_000 < engine.numel() < 1_000_000
    weights = torch.load(plans / "dynamic_float16.weights.pt", weights_only=True)
    model = CASES["dynamic_float16"].make_model()
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())


def test_tests_find_the_engines_that_were_built_for_them(plans: Path) -> None:
    program = (
        "from tests.py.runtime.runtime_testing import make_plan\n"
        "plans = [make_plan(name) for name in 'abcd']\n"
        "assert all(len(plan.engine) > 10_000 for plan in plans)\n"
        "print(*(plan.shape for plan in plans))\n"
    )
    environment = {
        **os.environ,
        "TORCHTRT_TEST_DEVICE": "gpu",
        "TORCHTRT_TEST_PLANS": str(plans / "relu"),
    }
    command = [sys.executable, "-c", program]
    found = subprocess.check_output(command, env=environment, text=True)
    assert found == "(1, 72) (1, 80) (1, 88) (1, 64)\n"


def test_float16_keeps_within_its_bound() -> None:
    """The bound is no looser than rounding requires, and no tighter."""
    case, exact = CASES["mlp_float16"], CASES["mlp_float32"]
    x = case.make_input()
    with torch.inference_mode():
        rounded = case.make_model()(x)
        error = relative_error(rounded, exact.make_model()(x.float()))
    assert case.bound / 20 < error < case.bound


def test_relative_error() -> None:
    r = torch.tensor([3.0, 4.0])
    assert relative_error(r, r) == 0
    assert relative_error(torch.tensor([3.0, 4.5]), r) == 0.1
