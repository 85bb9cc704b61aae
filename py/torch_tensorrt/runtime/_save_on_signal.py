"""Saves caches when the process receives a signal."""

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
    """Saves all caches that save themselves when this process receives the signal.

        save_on_signal(signal.SIGTERM)

    Python does not run exit handlers when SIGTERM ends a process. This function installs a signal
    handler, which waits up to 8 s for a background thread to save the caches. A failure is logged
    as a warning. Then the handler calls the previous handler, or the signal takes its default
    action. In a child of fork(), the handler saves nothing.

    Python calls the handler once the main thread is back in the interpreter, so a long call into
    native code delays it. Caches that only C++ code of the process uses are not saved.

    A handler that is installed later replaces this one, as usual. A previous handler that was not
    installed from Python can't be called. The default action is taken instead.

    Args:
        signalnum: As for `signal.signal`.

    Raises:
        ValueError: The signal is unknown, or this is not the main thread.
        OSError: The signal can't be handled.
    """
    previous = signal.getsignal(signalnum)
    if not (isinstance(previous, _Handler) and previous.process == os.getpid()):
        signal.signal(signalnum, _Handler(previous))
        # Started now, because the handler may interrupt code that starts a thread.
        checkpoint_thread.start()


class _Handler:
    def __init__(self, previous: Any) -> None:
        self._previous = previous
        self.process = os.getpid()

    def __call__(self, signalnum: int, frame: FrameType | None) -> None:
        # The interrupted code may hold the lock of a cache, for which the saves would wait.
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
