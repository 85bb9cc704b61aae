"""The deadline for the saves at the end of this process."""

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
    """Makes an exit that begins before `deadline` end its saves by then.

    Nothing else changes, because the process may live on, or take longer before it ends.
    """
    global _expected_deadline
    _expected_deadline = deadline


def begin_exit() -> float:
    """Sets the deadline for the end of this process, and returns it, by time.monotonic().

    All saves and waits at the end of a process share one deadline. The first call, here or in the
    C++ runtime, sets it.
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
    """Returns the deadline, or infinity if the end of this process has not begun."""
    return _deadline


def _start_over() -> None:
    """Called in a child of fork(), whose parent may be about to end."""
    global _deadline, _expected_deadline
    _deadline = math.inf
    _expected_deadline = -math.inf


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over)
