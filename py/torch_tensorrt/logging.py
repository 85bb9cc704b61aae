"""Sets how much both runtimes log.

The C++ runtime writes lines like `INFO: [Torch-TensorRT] - text` to stderr. The Python runtime
uses Python's logger `torch_tensorrt`. As long as no handler there or above takes its messages, they
too go to stderr, in the same form.

The environment variable TORCHTRT_LOG_LEVEL sets the initial level, by name or number. Without it,
the C++ runtime logs warnings and errors, and the Python runtime what Python's loggers are set to.

Thread safety: any function may be called from any thread. The level applies to the whole process.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import IntEnum

import torch

from torch_tensorrt._library import library_error

__all__ = [
    "Level",
    "debug",
    "errors",
    "get_level",
    "graphs",
    "info",
    "internal_errors",
    "set_level",
    "warnings",
]

_LOGGER = logging.getLogger("torch_tensorrt")
_ENVIRONMENT_VARIABLE = "TORCHTRT_LOG_LEVEL"


class Level(IntEnum):
    """Least verbose first; the values are the C++ runtime's."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    DEBUG = 4
    GRAPH = 5


_PYTHON_LEVELS = {
    Level.INTERNAL_ERROR: logging.CRITICAL,
    Level.ERROR: logging.ERROR,
    Level.WARNING: logging.WARNING,
    Level.INFO: logging.INFO,
    Level.DEBUG: logging.DEBUG,
    Level.GRAPH: logging.DEBUG - 1,
}

_level = Level.WARNING


def set_level(level: Level | int | str) -> None:
    """Makes both runtimes log messages of this level and of more severe ones.

    Args:
        level: A `Level`, its number, or its name in any case.

    Raises:
        ValueError: The level is unknown. The message lists the known ones.
    """
    global _level
    _level = _parse(level)
    _LOGGER.setLevel(_PYTHON_LEVELS[_level])
    if library_error() is None:
        torch.ops.tensorrt.set_logging_level(int(_level))


def get_level() -> Level:
    """Returns the level set last, here or by TORCHTRT_LOG_LEVEL, or else `Level.WARNING`."""
    return _level


def internal_errors() -> AbstractContextManager[None]:
    """Makes both runtimes log only internal errors in a block."""
    return _at(Level.INTERNAL_ERROR)


def errors() -> AbstractContextManager[None]:
    """Makes both runtimes log only errors in a block."""
    return _at(Level.ERROR)


def warnings() -> AbstractContextManager[None]:
    """Makes both runtimes log warnings and errors in a block."""
    return _at(Level.WARNING)


def info() -> AbstractContextManager[None]:
    """Makes both runtimes log what they do, such as load and save a cache, in a block."""
    return _at(Level.INFO)


def debug() -> AbstractContextManager[None]:
    """Makes both runtimes log details in a block."""
    return _at(Level.DEBUG)


def graphs() -> AbstractContextManager[None]:
    """Makes both runtimes log everything that they can in a block."""
    return _at(Level.GRAPH)


@contextmanager
def _at(level: Level) -> Iterator[None]:
    before, python_before = _level, _LOGGER.level
    set_level(level)
    try:
        yield
    finally:
        set_level(before)
        _LOGGER.setLevel(python_before)  # other code may have set it


def _parse(level: Level | int | str) -> Level:
    for known in Level:
        if level == known or str(level).upper() in (known.name, str(int(known))):
            return known
    names = [f"{known.name.lower()} ({int(known)})" for known in Level]
    raise ValueError(
        f"Unknown log level {level!r}, expected {', '.join(names[:-1])} or {names[-1]}"
    )


class _HandlerOfLastResort(logging.Handler):
    """Writes records that no other handler takes.

    Python's own handler of last resort drops everything below a warning. With it, a level set here
    or in the environment would change nothing in a program that has not set up logging.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is None or self._is_handled_elsewhere(record):
            return
        try:
            # In one write, so that lines of several threads and processes do not mix.
            sys.stderr.write(
                f"{record.levelname}: [Torch-TensorRT] - {self.format(record)}\n"
            )
        except Exception:
            self.handleError(record)

    def _is_handled_elsewhere(self, record: logging.LogRecord) -> bool:
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False


def _set_level_from_environment() -> None:
    global _level
    text = os.environ.get(_ENVIRONMENT_VARIABLE)
    if not text:
        return
    if library_error() is None:
        # The C++ runtime reads the variable too, and logs a warning about an unknown level.
        set_level(torch.ops.tensorrt.get_logging_level())
        return
    try:
        set_level(text)
    except ValueError:
        set_level(Level.WARNING)
        _LOGGER.warning(
            "%s is '%s', expected internal_error, error, warning, info, debug, graph or 0 to 5; "
            "using warning",
            _ENVIRONMENT_VARIABLE,
            text,
        )


_LOGGER.addHandler(_HandlerOfLastResort())
_set_level_from_environment()
