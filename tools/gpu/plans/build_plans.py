"""Builds the engines that a check on a GPU runs, ahead of time, on a machine that needs no GPU.

    ./bazelw run //tools/gpu:build_plans -- --out DIR [--compute-capabilities 8.6 12.0 ...]

DIR gets an engine file and the model's weights for each case of models.py, and `relu`, a folder of
engine files for tests that can't compile any.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from tools.gpu.names import (
    COMPUTE_CAPABILITIES,
    ENGINE_SUFFIX,
    TEST_PLANS,
    WEIGHTS_SUFFIX,
)
from tools.gpu.plans.models import CASES, Case, make_input, make_model

TEST_PLAN_WIDTHS = range(64, 192, 8)


def build(case: Case, folder: Path, capabilities: Sequence[str] | None) -> int:
    """Writes the engine and the weights of one case, and answers the engine file's bytes.

    Args:
        capabilities: Compute capabilities; None: that of this machine's GPU.
    """
    import torch_tensorrt
    from torch_tensorrt.runtime import RuntimeSettings

    model = make_model(case)
    dynamic_shapes = None
    if case.batches is not None:
        least, _, greatest = case.batches
        batch = torch.export.Dim("batch", min=least, max=greatest)
        dynamic_shapes = ({0: batch},)
    module = torch_tensorrt.compile(
        model,
        arg_inputs=(make_input(case),),
        dynamic_shapes=dynamic_shapes,
        compute_capabilities=capabilities,
        runtime_settings=RuntimeSettings(),
    )
    path = folder / f"{case.name}{ENGINE_SUFFIX}"
    module.save(path)
    torch.save(model.state_dict(), folder / f"{case.name}{WEIGHTS_SUFFIX}")
    return path.stat().st_size


def build_test_plans(folder: Path, capabilities: Sequence[str] | None) -> int:
    """Writes the engines of TEST_PLANS, and answers their files' bytes in all."""
    import torch_tensorrt
    from torch_tensorrt.runtime import RuntimeSettings

    (folder / TEST_PLANS).mkdir(exist_ok=True)
    size = 0
    for width in TEST_PLAN_WIDTHS:
        linear = torch.nn.Linear(width, width, bias=False)
        torch.nn.init.eye_(linear.weight)
        module = torch_tensorrt.compile(
            torch.nn.Sequential(linear, torch.nn.ReLU()).eval(),
            arg_inputs=(torch.zeros(1, width),),
            compute_capabilities=capabilities,
            runtime_settings=RuntimeSettings(),
        )
        path = folder / TEST_PLANS / f"{width}{ENGINE_SUFFIX}"
        module.save(path)
        size += path.stat().st_size
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="made if missing")
    parser.add_argument(
        "--compute-capabilities",
        nargs="+",
        default=COMPUTE_CAPABILITIES,
        metavar="X.Y",
        help=f"of the GPUs that are to run them; default: {' '.join(COMPUTE_CAPABILITIES)}; "
        "'current' is this machine's",
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=[*CASES, TEST_PLANS],
        default=[*CASES, TEST_PLANS],
        metavar="CASE",
    )
    arguments = parser.parse_args()
    # `bazel run` starts programs elsewhere than where it was called.
    folder = Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."), arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    capabilities = arguments.compute_capabilities
    if capabilities == ["current"]:
        capabilities = None
    for name in arguments.cases:
        if name == TEST_PLANS:
            size = build_test_plans(folder, capabilities)
        else:
            size = build(CASES[name], folder, capabilities)
        print(f"{folder / name}: {size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
