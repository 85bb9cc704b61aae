"""Where the questions are asked: a GPU with TensorRT-RTX, or the simulated device."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from tools.gpu.names import ENGINE_SUFFIX, WEIGHTS_SUFFIX
from tools.gpu.plans.models import CASES, Case, make_input, make_model


@dataclass(frozen=True)
class Plan:
    """A serialized engine, of `case`'s model or what stands in for it.

    Attributes:
        engine: uint8 [size in bytes], on the CPU.
    """

    case: Case
    engine: torch.Tensor
    inputs: list[str]
    outputs: list[str]


class Device(Protocol):
    """Picklable: each process installs it for itself, before it calls anything else."""

    wants_fresh_workers: ClassVar[bool]  # interpreters, which start in seconds

    def install(self) -> None:
        """Both runtimes load their plans there, to the end of this process."""

    def cases(self) -> list[str]:
        """The names of its plans."""

    def plan(self, name: str) -> Plan: ...

    def example(
        self, name: str, batch: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """An input on the device, and the output to expect of it."""

    def is_known(self) -> bool:
        """Whether TensorRT-RTX has its compute capability among those it builds for."""

    def has_cuda(self) -> bool: ...

    def synchronize(self) -> None:
        """Until all that was enqueued is done."""

    def compilations(self) -> int | None:
        """How many kernels were compiled in this process, None where that can't be known."""


@dataclass(frozen=True)
class GpuDevice:
    """The current CUDA device.

    Attributes:
        plans: What build_plans.py wrote.
    """

    plans: Path

    # Forked processes have the same addresses, on which serialized bytes might depend.
    wants_fresh_workers: ClassVar[bool] = True

    def install(self) -> None:
        # The reference shall be better than what is measured against it.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.zeros(1, device="cuda").cpu()

    def cases(self) -> list[str]:
        return [
            name for name in CASES if (self.plans / f"{name}{ENGINE_SUFFIX}").exists()
        ]

    def plan(self, name: str) -> Plan:
        from torch_tensorrt.runtime._engine.engine_file import load_engine_file

        file = load_engine_file(self.plans / f"{name}{ENGINE_SUFFIX}")
        return Plan(
            CASES[name],
            file.plan.clone(),
            file.input_binding_names,
            file.output_binding_names,
        )

    def example(
        self, name: str, batch: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = make_input(CASES[name], batch).cuda()
        with torch.inference_mode():
            return x, _model_on_gpu(self.plans, name)(x)

    def is_known(self) -> bool:
        from tests.util.simulation.supported_gpu import supported_gpu

        return supported_gpu() is not None

    def has_cuda(self) -> bool:
        return True

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def compilations(self) -> int | None:
        return None


@cache
def _model_on_gpu(plans: Path, name: str) -> torch.nn.Module:
    # Another version of torch may draw other numbers.
    weights = torch.load(plans / f"{name}{WEIGHTS_SUFFIX}", weights_only=True)
    model = make_model(CASES[name])
    model.load_state_dict(weights)
    return model.cuda()


@dataclass(frozen=True)
class SimulatedDevice:
    """tests/util/simulation/SimulatedDevice.h; each plan is a ReLU with the shapes of its case.

    Attributes:
        deserialize_mode: "adds" or "replaces", as IRuntimeCache::deserialize.
        version: Of TensorRT-RTX.
        compile_time: In seconds a kernel.
        known: As `is_known`.
    """

    deserialize_mode: str = "adds"
    version: str = "1.6.1.120"
    compile_time: float = 0.0
    known: bool = True

    wants_fresh_workers: ClassVar[bool] = False

    def install(self) -> None:
        from tests.util.simulation.simulated_device import installed_device

        process = ExitStack()
        device = process.enter_context(installed_device())
        atexit.register(process.close)
        device.set_deserialize_mode(self.deserialize_mode)
        device.set_environment(tensorrt_rtx_version=self.version)
        device.set_compile_time(self.compile_time)
        _installed.append(device)

    def cases(self) -> list[str]:
        return [name for name, case in CASES.items() if case.dtype == torch.float32]

    def plan(self, name: str) -> Plan:
        from tests.util.simulation.simulated_device import dynamic_relu_plan, relu_plan

        case = CASES[name]
        kernels = {"mlp": 3, "convolution": 5, "dynamic": 2}[case.architecture]
        if case.batches is None:
            engine = relu_plan(f"{name}_", kernels, 1000, case.shape)
        else:
            least, tuned, greatest = (
                (batch, *case.shape[1:]) for batch in case.batches
            )
            engine = dynamic_relu_plan(
                least, tuned, greatest, f"{name}_", kernels, 1000
            )
        return Plan(
            case, torch.frombuffer(bytearray(engine), dtype=torch.uint8), ["x"], ["y"]
        )

    def example(
        self, name: str, batch: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = make_input(CASES[name], batch)
        return x, torch.relu(x)

    def is_known(self) -> bool:
        return self.known

    def has_cuda(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass

    def compilations(self) -> int | None:
        compiled: int = _installed[-1].counters()["compilations"]
        return compiled


_installed: list[Any] = []
