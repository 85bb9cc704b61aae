"""The module on the Python runtime."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_tensorrt.runtime._engine.engine_module import EngineModule
from torch_tensorrt.runtime._runtime_settings import RuntimeSettings


class PythonTorchTensorRTModule(EngineModule):
    """An `EngineModule` on the Python runtime, even if the C++ runtime can be loaded."""

    def __init__(
        self,
        serialized_engine: bytes | torch.Tensor | None = None,
        input_binding_names: Sequence[str] = (),
        output_binding_names: Sequence[str] = (),
        *,
        name: str = "",
        runtime_settings: RuntimeSettings | None = None,
    ) -> None:
        super().__init__(
            serialized_engine,
            input_binding_names,
            output_binding_names,
            name=name,
            runtime_settings=runtime_settings,
            use_python_runtime=True,
        )
