"""A directory that the test can't write to, even as root."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_VERSION_3 = 0x20080522


@contextmanager
def closed_directory(directory: Path) -> Iterator[None]:
    """While the block runs, this thread can't write to the directory, even if it is root.

    The thread drops its capabilities, so that only owner and mode give it permissions. It does not
    change its user id, since a sandbox may have only one.
    """
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    # The effective, permitted and inheritable capabilities, twice.
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
