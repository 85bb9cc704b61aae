"""Finds the GPU to run on."""

from __future__ import annotations

import tensorrt_rtx
import torch


def supported_gpu() -> str | None:
    """The current GPU's name, or None if there is none or TensorRT-RTX does not support it."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    if f"SM{major}{minor}" not in tensorrt_rtx.ComputeCapability.__members__:
        return None
    return torch.cuda.get_device_name()
