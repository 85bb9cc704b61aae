"""Logging where the lock of a file may be held."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from torch_tensorrt.runtime._file_lock import call_without_lock

if TYPE_CHECKING:
    _LoggerAdapter = logging.LoggerAdapter[logging.Logger]
else:
    _LoggerAdapter = logging.LoggerAdapter


class UnlockedLogger(_LoggerAdapter):
    """A logger that waits until its thread has left the block of a `file_lock`.

    A log handler has a lock of its own, and the garbage collector may run another cache's save
    within one: that would wait for the file's lock, and its holder for the handler's.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if self.isEnabledFor(level):
            call_without_lock(partial(self.logger.log, level, msg, *args, **kwargs))
