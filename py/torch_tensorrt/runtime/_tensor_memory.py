"""The bytes of tensors. torch's own way to them needs numpy."""

from __future__ import annotations

import ctypes

import torch


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, of format "B", uncopied and kept alive.

    It can be written to, which is for the owner of the tensor to do alone: lazy clones share it.
    """
    if tensor.numel() == 0:
        return memoryview(b"")
    # Not data_ptr(), which makes a copy of what lazy clones share.
    address = getattr(tensor, "const_data_ptr")()
    array = (ctypes.c_ubyte * tensor.nbytes).from_address(address)
    # It lives as long as a view does.
    array.owner = tensor  # type: ignore[attr-defined]
    return memoryview(array).cast("B")
