"""When the end of this process must be done with saving."""

from __future__ import annotations

import math
import os
import time

import torch

EXIT_TIMEOUT = 8.0  # seconds; `docker stop` kills after 10

# By time.monotonic().
_deadline = math.inf
_expected_deadline = -math.inf


def expect_exit(deadline: float) -> None:
    """Makes an exit that begins before the deadline end by it.

    Nothing else changes, since the process may live on, or drain for longer before it ends.
    """
    global _expected_deadline
    _expected_deadline = deadline


def begin_exit() -> float:
    """Returns the deadline, by time.monotonic().

    All saves and waits at the end of a process share one, which the first call sets, here or in the
    C++ runtime.
    """
    global _deadline
    if _deadline == math.inf:
        left = EXIT_TIMEOUT
        if hasattr(torch.ops.tensorrt, "begin_exit"):  # the C++ runtime is loaded
            left = torch.ops.tensorrt.begin_exit()
        now = time.monotonic()
        _deadline = now + left
        if _expected_deadline > now:
            _deadline = min(_deadline, _expected_deadline)
    return _deadline


def exit_deadline() -> float:
    """Returns the deadline, infinity unless the end of this process has begun."""
    return _deadline


def _start_over() -> None:
    """In a child of fork(), whose parent may be at its end."""
    global _deadline, _expected_deadline
    _deadline = math.inf
    _expected_deadline = -math.inf


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over)
