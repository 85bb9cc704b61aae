"""Where the questions are asked: a GPU with TensorRT-RTX, or the simulated device."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from tests.util.simulation import simulated_device
from tools.gpu.plans import CASES
from torch_tensorrt.runtime._engine.engine_file import load_engine_file

# A serialized engine, uint8 [size in bytes] on the CPU, and the names of its inputs and outputs.
Plan = tuple[torch.Tensor, list[str], list[str]]


@dataclass(frozen=True)
class GpuDevice:
    """The current CUDA device.

    Attributes:
        plans: What plans.py wrote.
        is_known: Whether TensorRT-RTX names its compute capability.
    """

    plans: Path
    is_known: bool
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

    def cases(self) -> list[str]:
        return [name for name in CASES if (self.plans / f"{name}.engine").exists()]

    def plan(self, name: str) -> Plan:
        file = load_engine_file(self.plans / f"{name}.engine")
        return file.plan.clone(), file.input_binding_names, file.output_binding_names

    def example(
        self, name: str, batch: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns an input on the device, and on the CPU the output to expect of it."""
        model = CASES[name].make_model()
        weights = torch.load(self.plans / f"{name}.weights.pt", weights_only=True)
        model.load_state_dict(weights)
        x = CASES[name].make_input(batch).cuda()
        with torch.inference_mode():
            return x, model.cuda()(x).cpu()


class SimulatedDevice:
    """tests/util/simulation/SimulatedDevice.h. Each plan is a ReLU with the shapes of its case."""

    is_known = True
    start_method = "forkserver"

    def install(self) -> Any:
        device = _process.enter_context(simulated_device.installed_device())
        device.set_compile_time(0.01)
        return device

    def cases(self) -> list[str]:
        return [name for name, case in CASES.items() if case.dtype == torch.float32]

    def plan(self, name: str) -> Plan:
        case = CASES[name]
        least, tuned, greatest = (
            (batch, *case.shape[1:])
            for batch in (case.batches[0], case.shape[0], case.batches[-1])
        )
        kernels = f"{name}_", 3, 1000
        if least == greatest:
            engine = simulated_device.relu_plan(*kernels, case.shape)
        else:
            engine = simulated_device.dynamic_relu_plan(
                least, tuned, greatest, *kernels
            )
        return torch.frombuffer(bytearray(engine), dtype=torch.uint8), ["x"], ["y"]

    def example(
        self, name: str, batch: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = CASES[name].make_input(batch)
        return x, torch.relu(x)


Device = GpuDevice | SimulatedDevice

_process = ExitStack()  # what lives as long as this process
