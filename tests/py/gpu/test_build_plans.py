"""Plans for the GPU check are built on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.gpu.names import TEST_PLANS
from tools.gpu.plans.models import CASES, make_input, make_model, relative_error
from tools.gpu.questions.devices import GpuDevice


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What build_plans.py writes."""
    folder = tmp_path_factory.mktemp("plans")
    subprocess.run(
        [
            *(sys.executable, "-m", "tools.gpu.plans.build_plans", "--out", folder),
            *("--compute-capabilities", "8.6"),
            *("--cases", "dynamic_float16", TEST_PLANS),
        ],
        check=True,
    )
    return folder


def test_builds_a_plan_and_keeps_the_weights(plans: Path) -> None:
    device = GpuDevice(plans)
    assert device.cases() == ["dynamic_float16"]
    plan = device.plan("dynamic_float16")
    assert (plan.inputs, plan.outputs) == (["input"], ["output0"])
    assert 10_000 < plan.engine.numel() < 1_000_000
    weights = torch.load(plans / "dynamic_float16.weights.pt", weights_only=True)
    model = make_model(CASES["dynamic_float16"])
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())


def test_tests_find_the_plans_that_were_built_for_them(plans: Path) -> None:
    program = (
        "from tests.py.runtime.runtime_testing import make_plan\n"
        "plans = [make_plan(name) for name in ('a', 'b', 'c', 'p0')]\n"
        "print(*(len(plan.engine) > 10_000 for plan in plans))\n"
        "print(*(plan.shape for plan in plans))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "TORCHTRT_TEST_DEVICE": "gpu",
            "TORCHTRT_TEST_PLANS": str(plans / TEST_PLANS),
        },
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.splitlines() == [
        "True True True True",
        "(1, 72) (1, 80) (1, 88) (1, 64)",
    ]


def test_float16_keeps_within_its_bound() -> None:
    """The bound is no looser than rounding asks for, and no tighter."""
    case, exact = CASES["mlp_float16"], CASES["mlp_float32"]
    x = make_input(case)
    with torch.inference_mode():
        rounded = make_model(case)(x)
        error = relative_error(rounded, make_model(exact)(x.float()))
    assert case.bound / 20 < error < case.bound


def test_relative_error() -> None:
    r = torch.tensor([3.0, 4.0])
    assert relative_error(r, r) == 0
    assert relative_error(torch.tensor([3.0, 4.5]), r) == 0.1
    assert relative_error(torch.tensor([3.0, float("nan")]), r) == float("inf")
