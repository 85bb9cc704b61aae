"""Logging for code that may hold the lock of a file."""

from __future__ import annotations

import logging
from functools import partial

from torchtrt_cache.file_lock import call_without_lock, is_in_block


class _WaitForUnlock(logging.Filter):
    """Holds a record back until its thread has left all `file_lock` blocks.

    A log handler has a lock of its own, and the garbage collector may run another cache's save
    while it is held. That save would wait for the file's lock, and a thread that holds the file's
    lock would wait for the handler's.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not is_in_block():
            return True
        call_without_lock(partial(logging.getLogger(record.name).handle, record))
        return False


def unlocked_logger(name: str) -> logging.Logger:
    """Returns the logger `torch_tensorrt.runtime.<name>`.

    Its records reach no handler while the thread holds a file's lock. The name begins with
    "torch_tensorrt" in every package, so that users set one level.
    """
    logger = logging.getLogger(f"torch_tensorrt.runtime.{name}")
    logger.addFilter(_WaitForUnlock())
    return logger
