"""The module on the C++ runtime."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_tensorrt._library import library_error
from torch_tensorrt.runtime._engine.engine_module import EngineModule
from torch_tensorrt.runtime._runtime_settings import RuntimeSettings


class TorchTensorRTModule(EngineModule):
    """An `EngineModule` on the C++ runtime, or on the Python runtime if that can't be loaded.

    Args:
        use_python_runtime: True selects the Python runtime, False the C++ runtime. None selects the
            C++ runtime if its library can be loaded.

    Raises:
        ImportError: `use_python_runtime` is False, and the library can't be loaded.
    """

    def __init__(
        self,
        serialized_engine: bytes | torch.Tensor | None = None,
        input_binding_names: Sequence[str] = (),
        output_binding_names: Sequence[str] = (),
        *,
        name: str = "",
        runtime_settings: RuntimeSettings | None = None,
        use_python_runtime: bool | None = None,
    ) -> None:
        error = library_error()
        if use_python_runtime is False and error is not None:
            raise error.with_traceback(None)
        if use_python_runtime is None:
            use_python_runtime = error is not None
        super().__init__(
            serialized_engine,
            input_binding_names,
            output_binding_names,
            name=name,
            runtime_settings=runtime_settings,
            use_python_runtime=use_python_runtime,
        )
