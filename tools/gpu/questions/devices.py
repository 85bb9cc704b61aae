"""The GPU of which the questions are asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from tools.gpu.plans import CASES, COMPUTE_CAPABILITIES
from torch_tensorrt.runtime._engine.engine_file import load_engine_file

# A serialized engine, uint8 [size in bytes] on the CPU, and the names of its inputs and outputs.
Plan = tuple[torch.Tensor, list[str], list[str]]


@dataclass
class GpuDevice:
    """The current CUDA device.

    Attributes:
        plans: What plans.py wrote.
    """

    plans: Path
    # Forked processes have the same addresses, on which serialized bytes might depend.
    start_method: ClassVar[str] = "spawn"

    def install(self) -> None:
        """Makes this process ready to load plans."""
        # A kernel that the driver kept from an earlier start would make a cold one warm.
        os.environ["CUDA_CACHE_DISABLE"] = "1"
        # The reference must be better than what is compared with it.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.zeros(1, device="cuda").cpu()

    def is_known(self) -> bool:
        """Whether the plans are built for its compute capability."""
        return torch.cuda.get_device_capability() in COMPUTE_CAPABILITIES

    def cases(self) -> list[str]:
        return list(CASES)

    def plan(self, name: str) -> Plan:
        file = load_engine_file(self.plans / f"{name}.engine")
        return file.plan.clone(), file.input_binding_names, file.output_binding_names

    def example(
        self, name: str, batch: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns an input on the device, and the expected output on the CPU."""
        model = CASES[name].make_model()
        weights = torch.load(self.plans / f"{name}.weights.pt", weights_only=True)
        model.load_state_dict(weights)
        x = CASES[name].make_input(batch).cuda()
        with torch.inference_mode():
            return x, model.cuda()(x).cpu()
