"""When the end of this process must be done with saving."""

from __future__ import annotations

import math
import os
import time

import torch

EXIT_TIMEOUT = 8.0  # seconds; `docker stop` kills after 10

_deadline = math.inf  # by time.monotonic()


def begin_exit(deadline: float = math.inf) -> float:
    """Returns the deadline, by time.monotonic().

    All saves and waits at the end of a process share one, which the first call sets, here or in the
    C++ runtime.

    Args:
        deadline: The latest that it can be.
    """
    global _deadline
    if _deadline == math.inf:
        left = EXIT_TIMEOUT
        if hasattr(torch.ops.tensorrt, "begin_exit"):  # the C++ runtime is loaded
            left = torch.ops.tensorrt.begin_exit()
        _deadline = min(time.monotonic() + left, deadline)
    return _deadline


def exit_deadline() -> float:
    """Returns the deadline, infinity unless the end of this process has begun."""
    return _deadline


def _start_over() -> None:
    """In a child of fork(), whose parent may be at its end."""
    global _deadline
    _deadline = math.inf


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over)
