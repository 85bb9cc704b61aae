"""Lets a test do something between the system calls of a thread, or make them fail.

LD_PRELOAD is tests/util/processes/observed_calls.cpp.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)
_observe_calls = ctypes.CDLL(None).observe_calls


@contextmanager
def observed(before: Callable[[str], int]) -> Iterator[None]:
    """Calls `before` before each call of this thread.

    It returns 0, the errno that the call is to fail with, or -n if it may move n bytes at most.
    """
    callback = _CALLBACK(lambda call: before(call.decode()))
    _observe_calls(callback)
    try:
        yield
    finally:
        _observe_calls(None)
