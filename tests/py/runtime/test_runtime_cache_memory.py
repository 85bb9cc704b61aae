"""Loading a large cache needs its size in memory once, and saving needs no more."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.py.runtime.runtime_cache_testing import handle_of
from tests.py.runtime.unprivileged import Child

SIZE = 64 << 20  # bytes
LITTLE = SIZE // 4


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    """A separate process, whose memory nothing else changes."""
    child = Child(print)
    yield child
    child.close()


def resident(field: str) -> int:
    """VmRSS is the memory that this process has now, VmHWM its maximum, in bytes."""
    status = Path("/proc/self/status").read_text()
    match = re.search(rf"{field}:\s*(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


def growth(function: Callable[[], Any]) -> int:
    """The maximum number of bytes by which this process grew during the call."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the maximum
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before


def growth_by_use(runtime: str, path: Path) -> dict[str, int]:
    # The first use of each operation loads code.
    small = handle_of(runtime, path.with_name("small"))
    small.deserialize(torch.ones(100_000, dtype=torch.uint8))
    small.save()
    small.load()
    handle = handle_of(runtime, path)
    handle.deserialize(torch.randint(256, [SIZE], dtype=torch.uint8))
    saving = growth(handle.save)
    saving_again = growth(handle.save)
    reader = handle_of(runtime, path)
    loading = growth(reader.load)
    serializing = growth(reader.serialize)
    return {
        "save": saving,
        "save again": saving_again,
        "load": loading,
        "serialize": serializing,
    }


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="the system does not report the maximum",
)
def test_memory(child: Child, runtime: str, path: Path) -> None:
    bytes_of = child(growth_by_use, runtime, path)
    if runtime == "python" and not hasattr(torch.Tensor, "const_data_ptr"):
        # Reading the handle's bytes then copies them once; see tensor_memory.py.
        assert bytes_of.pop("save") < SIZE + LITTLE
        assert bytes_of.pop("save again") < SIZE + LITTLE
    assert SIZE - LITTLE < bytes_of.pop("load") < SIZE + LITTLE
    assert {use: size for use, size in bytes_of.items() if size > LITTLE} == {}
