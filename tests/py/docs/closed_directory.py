"""A directory that can't be written to, whoever runs the test."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_VERSION_3 = 0x20080522


@contextmanager
def closed_directory(directory: Path) -> Iterator[None]:
    """For this thread, which meanwhile has permissions by owner and mode alone, also if it is root.

    Not by another user's id: a sandbox may have but one.
    """
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    # Two times effective, permitted and inheritable capabilities.
    before, without = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert _LIBC.capget(header, before) == 0
    without[:] = list(before)
    without[0] = without[3] = 0
    directory.chmod(0o555)
    assert _LIBC.capset(header, without) == 0
    try:
        yield
    finally:
        assert _LIBC.capset(header, before) == 0
        directory.chmod(0o755)
