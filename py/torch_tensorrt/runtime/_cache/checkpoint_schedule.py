"""Decides when to save a cache next. The twin of core/runtime/CheckpointSchedule.h."""

from __future__ import annotations

import math
import random
from enum import Enum, auto

_PAUSE_IN_CALL = 2.0  # all pauses are in seconds
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 600.0
_ENOUGH_OF_NOTHING = 2


class Found(Enum):
    """What a checkpoint found."""

    NEW = auto()  # kernels that had not been saved
    NOTHING = auto()  # no new kernels
    FAILED = auto()  # the save failed
    LATER = auto()  # not tried, because it is not possible now


class CheckpointSchedule:
    """Decides when to save a runtime cache next while its process runs.

    New kernels can only come from a call that may compile. Checkpoints follow such a call at
    growing intervals until two in a row find nothing new. An engine that specializes its kernels
    lazily compiles in the background, possibly much later. Its cache has checkpoints for as long as
    the process runs, at intervals of up to 10 minutes.

    Each interval is shortened at random by up to a quarter, so that processes do not save in step.

    Thread safety: none (external synchronization). The class never reads a clock: callers pass the
    time, in seconds, which must not decrease.
    """

    def __init__(self) -> None:
        self._calls = 0  # running now
        self._has_lazy_engines = False
        self._has_call_ended = False  # since start()
        self._nothing_in_a_row = 0
        self._failures_in_a_row = 0
        self._pause = _FIRST_PAUSE
        self._retry = -math.inf  # earliest next checkpoint, later after failures
        self._due: float | None = None

    def begin(self, now: float, specializes_lazily: bool) -> None:
        """Must be called when a call that may compile begins. Calls may overlap.

        The next checkpoint is due within 2 s, unless checkpoints fail.
        """
        self._calls += 1
        self._has_lazy_engines |= specializes_lazily
        self._make_due(now + _varied(_PAUSE_IN_CALL))

    def end(self, now: float) -> None:
        """Must be called when such a call ends.

        The next checkpoint is due within 1 s, unless checkpoints fail.
        """
        self._calls = max(self._calls - 1, 0)
        self._has_call_ended = True
        self._nothing_in_a_row = 0
        self._pause = _FIRST_PAUSE
        self._make_due(now + _varied(_FIRST_PAUSE))

    def due(self) -> float | None:
        """Returns when the next checkpoint is due.

        Returns None if none is due before the next call begins.
        """
        return self._due

    def start(self) -> None:
        """Must be called when a checkpoint begins."""
        self._due = None
        self._has_call_ended = False

    def done(self, now: float, found: Found) -> None:
        """Must be called when the checkpoint ends."""
        if found is Found.FAILED:
            self._failures_in_a_row += 1
            # The exponent is bounded because a process may fail for weeks.
            backoff = _FIRST_PAUSE * 2 ** min(self._failures_in_a_row, 10)
            self._retry = now + _varied(min(backoff, _LONGEST_PAUSE))
            self._due = self._retry
            return
        if found is Found.LATER:
            self._make_due(now + _varied(_FIRST_PAUSE))
            return
        self._failures_in_a_row = 0
        self._retry = -math.inf
        self._nothing_in_a_row = 0 if found is Found.NEW else self._nothing_in_a_row + 1
        if self._calls > 0:
            self._make_due(now + _varied(_PAUSE_IN_CALL))
        elif not self._has_call_ended and (
            self._has_lazy_engines or self._nothing_in_a_row < _ENOUGH_OF_NOTHING
        ):
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._make_due(now + _varied(self._pause))

    def _make_due(self, time: float) -> None:
        time = max(time, self._retry)
        self._due = time if self._due is None else min(self._due, time)


def _varied(pause: float) -> float:
    return pause * random.uniform(0.75, 1.0)
