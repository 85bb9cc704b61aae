"""Torch modules that run a TensorRT-RTX engine."""

from torch_tensorrt.dynamo.runtime._PythonTorchTensorRTModule import (
    PythonTorchTensorRTModule,
)
from torch_tensorrt.dynamo.runtime._TorchTensorRTModule import TorchTensorRTModule

__all__ = ["PythonTorchTensorRTModule", "TorchTensorRTModule"]
