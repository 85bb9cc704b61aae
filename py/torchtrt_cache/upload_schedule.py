"""When to push a cache file to an object store while others save it."""

from __future__ import annotations

import math
import random

from torchtrt_cache.runtime_cache_file import FileGeneration

_QUIET = 5.0  # seconds
_LONGEST_DELAY = 60.0  # seconds
_FIRST_LOOK = 1.0  # seconds
_LONGEST_LOOK = 10.0  # seconds
_FIRST_RETRY = 10.0  # seconds
_LONGEST_RETRY = 600.0  # seconds


class UploadSchedule:
    """Says when to look at a cache file next, and when to push it.

    A file is pushed when it has not changed for 5 s, or 60 s after its first change if it keeps
    changing. Failed pushes are repeated after pauses that grow from 10 s to 10 minutes.

    Each of these pauses is shortened at random by up to a quarter, so that machines do not all push
    at once.

    Thread safety: none. No method reads a clock. Times are in seconds and must not decrease.
    """

    def __init__(self) -> None:
        self._generation: FileGeneration | None = None  # that the last look found
        self._look = -math.inf  # when to look next
        self._look_pause = _FIRST_LOOK
        self._due: float | None = None
        self._latest = math.inf  # until when the push may wait for more changes
        self._retry = -math.inf  # no push before this time, since pushes fail
        self._failures_in_a_row = 0

    def saw(
        self, now: float, generation: FileGeneration | None, is_uploaded: bool
    ) -> None:
        """Records what a look at the file found.

        Args:
            now: The time of the look.
            generation: None if there is no file.
            is_uploaded: Whether the object has all kernels of the file.
        """
        has_changed = generation != self._generation
        self._generation = generation
        self._look_pause = (
            _FIRST_LOOK if has_changed else min(2 * self._look_pause, _LONGEST_LOOK)
        )
        self._look = now + self._look_pause
        if generation is None or is_uploaded:
            self._forget_changes()
        elif has_changed:
            if self._due is None:
                self._latest = now + _varied(_LONGEST_DELAY)
            self._due = min(now + _varied(_QUIET), self._latest)

    def next_look(self, now: float) -> float:
        """Returns when to look at the file next, `now` at the earliest."""
        return max(now, self._look)

    def due(self) -> float | None:
        """Returns when to push. None if there is nothing to push."""
        return None if self._due is None else max(self._due, self._retry)

    def wake(self, now: float) -> float:
        """Returns when to look or push next."""
        due = self.due()
        look = self.next_look(now)
        return look if due is None else min(look, due)

    def failed(self, now: float) -> None:
        """Records that a push failed. It is due again later."""
        # The exponent has a bound for a process whose pushes fail for weeks.
        backoff = _FIRST_RETRY * 2 ** min(self._failures_in_a_row, 10)
        self._failures_in_a_row += 1
        self._retry = now + _varied(min(backoff, _LONGEST_RETRY))

    def done(self, now: float) -> None:
        """Records that a push succeeded, or is useless until the file changes.

        The next push is due after a look that finds another generation than the last look did.
        """
        self._failures_in_a_row = 0
        self._retry = -math.inf
        self._look_pause = _FIRST_LOOK
        self._look = now + self._look_pause
        self._forget_changes()

    def _forget_changes(self) -> None:
        self._due = None
        self._latest = math.inf


def _varied(pause: float) -> float:
    return pause * random.uniform(0.75, 1.0)
