"""CUDA's stream-capture mode for threads that run beside a capture of a CUDA graph."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


@contextmanager
def relaxed_stream_capture() -> Iterator[None]:
    """Keeps the calling thread from invalidating, in the block, a graph that another one captures.

    Does nothing if the CUDA driver is not loaded when the block begins.
    """
    exchange: Any = None
    with suppress(OSError, AttributeError):
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD)
        exchange = driver.cuThreadExchangeStreamCaptureMode
    if exchange is None:
        yield
        return
    mode = ctypes.c_int(_RELAXED)
    exchange(ctypes.byref(mode))
    try:
        yield
    finally:
        exchange(ctypes.byref(mode))
