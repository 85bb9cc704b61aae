"""Access to the bytes of tensors. torch's own way needs numpy."""

from __future__ import annotations

import ctypes

import torch


def address_of(tensor: torch.Tensor) -> int:
    """Returns the address of a tensor's elements, for reading."""
    # data_ptr() copies what lazy clones share. Older versions of torch have nothing else.
    address: int = getattr(tensor, "const_data_ptr", tensor.data_ptr)()
    return address


def memory_of(tensor: torch.Tensor) -> memoryview:
    """Returns the memory of a contiguous CPU tensor, of format "B", without a copy.

    The view keeps the memory alive. It is writable, but only the owner of the tensor may write to
    it, because lazy clones share it.
    """
    if tensor.numel() == 0:
        return memoryview(b"")
    array = (ctypes.c_ubyte * tensor.nbytes).from_address(address_of(tensor))
    # The array lives as long as any view of it.
    array.owner = tensor  # type: ignore[attr-defined]
    return memoryview(array).cast("B")


def tensor_of(data: bytes | bytearray | memoryview) -> torch.Tensor:
    """Returns the bytes as a uint8 tensor [size in bytes], without a copy if they are writable."""
    if len(data) == 0:
        return torch.empty(0, dtype=torch.uint8)
    is_writable = not memoryview(data).readonly
    return torch.frombuffer(data if is_writable else bytearray(data), dtype=torch.uint8)
