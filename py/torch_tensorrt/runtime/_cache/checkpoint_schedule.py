"""When to save a cache next; the twin of core/runtime/CheckpointSchedule.h."""

from __future__ import annotations

import math
import random
from enum import Enum, auto

_PAUSE_IN_CALL = 2.0  # seconds, as all here
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 600.0
_ENOUGH_OF_NOTHING = 2


class Found(Enum):
    """What a checkpoint found."""

    NEW = auto()  # kernels that had not been saved
    NOTHING = auto()  # none
    FAILED = auto()  # the save failed
    LATER = auto()  # nothing: it could not be tried now


class CheckpointSchedule:
    """When to save a runtime cache next while its process runs.

    New kernels can only come from a call that may compile, so checkpoints follow such calls at
    growing pauses, until two in a row find nothing new. An engine that specializes its kernels
    lazily compiles in the background, maybe late. Its cache is checked on for ever, at pauses of up
    to 10 minutes.

    Each pause is shortened by up to a quarter, at random, so that processes do not march in step.

    Thread safety: none. Nobody reads a clock here; times are in seconds and must not decrease.
    """

    def __init__(self) -> None:
        self._calls = 0  # that run now
        self._has_lazy_engines = False
        self._has_call_ended = False  # since start()
        self._nothing_in_a_row = 0
        self._failures_in_a_row = 0
        self._pause = _FIRST_PAUSE
        self._retry = -math.inf  # not before, since checkpoints fail
        self._due: float | None = None

    def begin(self, now: float, specializes_lazily: bool) -> None:
        """A call that may compile begins. Calls may overlap.

        The first checkpoint comes within 2 s, unless checkpoints fail.
        """
        self._calls += 1
        self._has_lazy_engines |= specializes_lazily
        self._make_due(now + _varied(_PAUSE_IN_CALL))

    def end(self, now: float) -> None:
        """A call ends. The next checkpoint comes within 1 s, unless checkpoints fail."""
        self._calls = max(self._calls - 1, 0)
        self._has_call_ended = True
        self._nothing_in_a_row = 0
        self._pause = _FIRST_PAUSE
        self._make_due(now + _varied(_FIRST_PAUSE))

    def due(self) -> float | None:
        """When the next checkpoint is due; None as long as nothing happens."""
        return self._due

    def start(self) -> None:
        """A checkpoint begins."""
        self._due = None
        self._has_call_ended = False

    def done(self, now: float, found: Found) -> None:
        """The checkpoint ends."""
        if found is Found.FAILED:
            self._failures_in_a_row += 1
            # The bound of the exponent is for a process that fails for weeks.
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
