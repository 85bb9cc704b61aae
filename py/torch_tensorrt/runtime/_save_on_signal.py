"""Caches that are saved when a signal comes."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from types import FrameType
from typing import Any

from torch_tensorrt.runtime._cache.checkpoint_thread import checkpoint_thread
from torch_tensorrt.runtime._cache.exit_deadline import EXIT_TIMEOUT, expect_exit
from torch_tensorrt.runtime._runtime_cache import save_all_within
from torchtrt_cache.file_lock import call_without_lock


def save_on_signal(signalnum: int) -> None:
    """Saves each cache that saves itself when this process gets the signal.

        save_on_signal(signal.SIGTERM)

    Python itself runs nothing when SIGTERM ends a process. The handler that this installs waits up
    to 8 s for a background thread to save. A failure is logged as a warning. Then the handler from
    before is called, or the signal takes its default action. In a child of fork() it saves nothing.

    Python calls the handler once the main thread is back in the interpreter, so a long call into
    native code delays it. Caches that only C++ code of the process has are not saved.

    A handler that is installed later takes this one's place, as usual. A handler that was not
    installed from Python can't be called; the default action takes its place.

    Args:
        signalnum: As for `signal.signal`.

    Raises:
        ValueError: There is no such signal, or this is not the main thread.
        OSError: It is a signal that can't be handled.
    """
    previous = signal.getsignal(signalnum)
    if not (isinstance(previous, _Handler) and previous.process == os.getpid()):
        signal.signal(signalnum, _Handler(previous))
        # Now, since a handler may interrupt whatever starts a thread.
        checkpoint_thread.start()


class _Handler:
    def __init__(self, previous: Any) -> None:
        self._previous = previous
        self.process = os.getpid()

    def __call__(self, signalnum: int, frame: FrameType | None) -> None:
        # What it interrupted may hold the lock of a cache, for which the saves would wait.
        call_without_lock(partial(self._save_and_go_on, signalnum, frame))

    def _save_and_go_on(self, signalnum: int, frame: FrameType | None) -> None:
        deadline = time.monotonic() + EXIT_TIMEOUT
        if self.process == os.getpid():
            save_all_within(EXIT_TIMEOUT)
        if callable(self._previous):
            try:
                self._previous(signalnum, frame)
            except SystemExit:
                expect_exit(deadline)
                raise
        elif self._previous != signal.SIG_IGN:
            signal.signal(signalnum, signal.SIG_DFL)
            signal.raise_signal(signalnum)
