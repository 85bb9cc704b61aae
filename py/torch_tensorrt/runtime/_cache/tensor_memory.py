"""The bytes of tensors. torch's own way to them needs numpy."""

from __future__ import annotations

import ctypes

import torch


def address_of(tensor: torch.Tensor) -> int:
    """Where the elements of a tensor are, to be read."""
    # data_ptr() makes a copy of what lazy clones share; older versions of torch have that alone.
    address: int = getattr(tensor, "const_data_ptr", tensor.data_ptr)()
    return address


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, of format "B", uncopied and kept alive.

    It can be written to, which is for the owner of the tensor to do alone: lazy clones share it.
    """
    if tensor.numel() == 0:
        return memoryview(b"")
    array = (ctypes.c_ubyte * tensor.nbytes).from_address(address_of(tensor))
    # It lives as long as a view does.
    array.owner = tensor  # type: ignore[attr-defined]
    return memoryview(array).cast("B")


def tensor_of(data: bytes | bytearray | memoryview) -> torch.Tensor:
    """The bytes as a uint8 tensor [size in bytes], uncopied where they can be written to."""
    if len(data) == 0:
        return torch.empty(0, dtype=torch.uint8)
    is_writable = not memoryview(data).readonly
    return torch.frombuffer(data if is_writable else bytearray(data), dtype=torch.uint8)
