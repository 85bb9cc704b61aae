"""Builds the engines that a check on a GPU runs, ahead of time, on a machine that needs no GPU.

    python3 tools/gpu/build_plans.py --out DIR [--compute-capabilities 8.6 12.0 ...]

DIR gets an engine file and the model's weights for each case of models.py. Needs torch, onnx,
onnxscript, tensorrt_rtx, and this repository's py/ on the PYTHONPATH:
`./bazelw run //tools/gpu:build_plans -- --out DIR` has them all.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from tools.gpu.devices import ENGINE_SUFFIX, WEIGHTS_SUFFIX
from tools.gpu.models import CASES, Case, make_input, make_model

# All that TensorRT-RTX 1.6 knows.
COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


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
        "--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE"
    )
    arguments = parser.parse_args()
    # `bazel run` starts programs elsewhere than where it was called.
    folder = Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."), arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    capabilities = arguments.compute_capabilities
    for name in arguments.cases:
        size = build(
            CASES[name], folder, None if capabilities == ["current"] else capabilities
        )
        print(f"{folder / name}{ENGINE_SUFFIX}: {size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
