"""Logging where the lock of a file may be held."""

from __future__ import annotations

import logging
from functools import partial

from torchtrt_cache.file_lock import call_without_lock, is_in_block


class _WaitForUnlock(logging.Filter):
    """Holds a record back until its thread has left the block of a `file_lock`.

    A log handler has a lock of its own, and the garbage collector may run another cache's save
    within one: that would wait for the file's lock, and its holder for the handler's.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not is_in_block():
            return True
        call_without_lock(partial(logging.getLogger(record.name).handle, record))
        return False


def unlocked_logger(name: str) -> logging.Logger:
    """The logger `torch_tensorrt.runtime.<name>`. Its records reach no handler under a file's lock.

    Users set the level of "torch_tensorrt", whichever package a module is in.
    """
    logger = logging.getLogger(f"torch_tensorrt.runtime.{name}")
    logger.addFilter(_WaitForUnlock())
    return logger
