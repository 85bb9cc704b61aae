"""Watches a test's system calls or makes them fail, if LD_PRELOAD names its library."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)
_observe_calls = ctypes.CDLL(None).observe_calls


@contextmanager
def observed(before: Callable[[str], int]) -> Iterator[None]:
    """Calls `before` before each call of this thread.

    It returns 0 to let the call be made, the errno with which it is to fail, or -n if it may move
    at most n bytes.
    """
    callback = _CALLBACK(lambda call: before(call.decode()))
    _observe_calls(callback)
    try:
        yield
    finally:
        _observe_calls(None)


class Faults:
    """Makes the `nth` call fail with `error`. Counts the calls named `only`, or all of them."""

    def __init__(
        self,
        error: int,
        nth: int = 1,
        only: str = "",
        always: dict[str, int] | None = None,
    ) -> None:
        self.failed = ""
        self._error = error
        self._left = nth
        self._only = only
        self._always = always or {}

    def __call__(self, call: str) -> int:
        if call in self._always or call == "fwrite":
            return self._always.get(call, 0)
        if self._only in ("", call):
            self._left -= 1
            if self._left == 0:
                self.failed = call
                return self._error
        return 0
