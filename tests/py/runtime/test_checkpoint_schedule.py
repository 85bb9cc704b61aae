"""When a running process saves a cache: the schedules of both languages, with simulated times."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torch_tensorrt  # noqa: F401  loads the library that registers the C++ schedule
from torch_tensorrt.runtime._cache.checkpoint_schedule import (
    CheckpointSchedule,
    Found,
)

LONGEST = 600.0  # seconds
EPSILON = 1e-6


class Schedule:
    """CheckpointSchedule of one runtime, with a simulated clock."""

    def __init__(self, runtime: str) -> None:
        self._is_python = runtime == "python"
        self._schedule: Any = (
            CheckpointSchedule()
            if self._is_python
            else torch.classes.tensorrt_schedules.CheckpointSchedule()
        )
        self.now = 1000.0

    def begin(self, lazily: bool = False) -> None:
        self._schedule.begin(self.now, lazily)

    def end(self) -> None:
        self._schedule.end(self.now)

    def compile(self, lazily: bool = False) -> None:
        """A call that takes no time."""
        self.begin(lazily)
        self.end()

    def start(self) -> None:
        self._schedule.start()

    def done(self, found: str) -> None:
        self._schedule.done(self.now, Found[found] if self._is_python else found)

    @property
    def is_due(self) -> bool:
        return self._schedule.due() is not None

    @property
    def pause(self) -> float:
        """The time from now to the next checkpoint."""
        due = self._schedule.due()
        assert due is not None
        return float(due) - self.now

    def is_within(self, pause: float) -> bool:
        """Returns True if the next checkpoint comes after that pause, which varies randomly."""
        return 0.75 * pause - EPSILON <= self.pause <= pause + EPSILON

    def check(self, found: str) -> None:
        """Makes the next checkpoint when it is due. It takes no time."""
        self.now += self.pause
        self.start()
        self.done(found)

    def rest(self) -> None:
        while self.is_due:
            self.check("NOTHING")


@pytest.fixture
def schedule(runtime: str) -> Schedule:
    return Schedule(runtime)


def test_nothing_is_due_before_the_first_call(schedule: Schedule) -> None:
    assert not schedule.is_due


# While a call runs.


def test_a_checkpoint_comes_2_s_after_a_call_begins(schedule: Schedule) -> None:
    schedule.begin()
    assert schedule.is_within(2)


@pytest.mark.parametrize("found", ["NEW", "NOTHING"])
def test_a_call_that_runs_is_checked_on_every_2_s(
    schedule: Schedule, found: str
) -> None:
    schedule.begin()
    for _ in range(100):
        schedule.check(found)
        assert schedule.is_within(2)


def test_a_call_runs_until_the_last_of_those_that_overlap_ends(
    schedule: Schedule,
) -> None:
    schedule.begin()
    schedule.begin()
    schedule.end()
    assert schedule.is_within(1)
    for _ in range(10):
        schedule.check("NOTHING")
        assert schedule.is_within(2)
    schedule.end()
    schedule.rest()
    assert not schedule.is_due


def test_a_call_that_begins_puts_no_checkpoint_off(schedule: Schedule) -> None:
    schedule.compile()
    before = schedule.now + schedule.pause
    schedule.now += 0.5
    schedule.begin()
    assert schedule.now + schedule.pause == pytest.approx(before)


def test_a_call_that_begins_brings_a_checkpoint_forward(schedule: Schedule) -> None:
    schedule.compile(lazily=True)
    for _ in range(10):
        schedule.check("NOTHING")
    assert schedule.pause > 100
    schedule.begin()
    assert schedule.is_within(2)


# After a call.


def test_a_checkpoint_comes_1_s_after_a_call_ends(schedule: Schedule) -> None:
    schedule.begin()
    schedule.now += 0.1
    schedule.end()
    assert schedule.is_within(1)


def test_pauses_double_while_there_is_something_new(schedule: Schedule) -> None:
    schedule.compile()
    for pause in (2.0**i for i in range(1, 15)):
        schedule.check("NEW")
        assert schedule.is_within(min(pause, LONGEST))


def test_rests_when_two_in_a_row_find_nothing_new(schedule: Schedule) -> None:
    schedule.compile()
    for found in ("NEW", "NOTHING", "NEW", "NOTHING"):
        schedule.check(found)
        assert schedule.is_due
    schedule.check("NOTHING")
    assert not schedule.is_due


def test_a_call_after_a_rest_begins_anew(schedule: Schedule) -> None:
    schedule.compile()
    schedule.rest()
    schedule.now += 1000
    schedule.compile()
    assert schedule.is_within(1)
    schedule.check("NOTHING")
    assert schedule.is_within(2)
    schedule.check("NOTHING")
    assert not schedule.is_due


def test_a_call_that_ends_begins_the_pauses_anew(schedule: Schedule) -> None:
    schedule.compile()
    for _ in range(8):
        schedule.check("NEW")
    assert schedule.is_within(256)
    schedule.compile()
    assert schedule.is_within(1)
    schedule.check("NEW")
    assert schedule.is_within(2)


def test_a_call_that_ends_during_a_checkpoint_is_checked_on_1_s_later(
    schedule: Schedule,
) -> None:
    schedule.begin()
    schedule.now += schedule.pause
    schedule.start()
    schedule.now += 0.5
    schedule.end()
    assert schedule.is_within(1)
    due = schedule.now + schedule.pause
    schedule.now += 0.25
    schedule.done("NOTHING")
    assert schedule.now + schedule.pause == pytest.approx(due)


def test_a_call_that_begins_during_a_checkpoint_is_checked_on_2_s_later(
    schedule: Schedule,
) -> None:
    schedule.compile()
    schedule.now += schedule.pause
    schedule.start()
    schedule.begin()
    assert schedule.is_within(2)
    schedule.done("NOTHING")
    assert schedule.is_within(2)


# Checkpoints that could not be tried.


def test_what_could_not_be_tried_is_due_1_s_later(schedule: Schedule) -> None:
    schedule.compile()
    for _ in range(20):
        schedule.check("LATER")
        assert schedule.is_within(1)


def test_what_could_not_be_tried_changes_no_pause(schedule: Schedule) -> None:
    schedule.compile()
    for pause in (2, 4, 8):
        schedule.check("LATER")
        schedule.check("NEW")
        assert schedule.is_within(pause)


def test_what_could_not_be_tried_found_neither_something_nor_nothing(
    schedule: Schedule,
) -> None:
    schedule.compile()
    for found in ("NOTHING", "LATER", "NOTHING"):
        assert schedule.is_due
        schedule.check(found)
    assert not schedule.is_due


def test_what_could_not_be_tried_is_no_success(schedule: Schedule) -> None:
    schedule.compile()
    for backoff in (2.0**i for i in range(1, 10)):
        schedule.check("FAILED")
        assert schedule.is_within(backoff)
        schedule.check("LATER")
        assert schedule.is_within(1)


def test_a_call_that_ends_meanwhile_brings_no_second_checkpoint(
    schedule: Schedule,
) -> None:
    schedule.begin()
    schedule.now += schedule.pause
    schedule.start()
    schedule.end()
    due = schedule.now + schedule.pause
    schedule.now += 0.5
    schedule.done("LATER")
    assert schedule.now + schedule.pause == pytest.approx(due)


# Engines that specialize lazily.


@pytest.mark.parametrize("found", ["NEW", "NOTHING"])
def test_lazy_engines_are_checked_on_for_ever_whatever_is_found(
    schedule: Schedule, found: str
) -> None:
    schedule.compile(lazily=True)
    for pause in (2.0**i for i in range(1, 30)):
        schedule.check(found)
        assert schedule.is_within(min(pause, LONGEST))


def test_a_cache_that_had_a_lazy_engine_never_rests(schedule: Schedule) -> None:
    schedule.compile(lazily=True)
    schedule.compile(lazily=False)
    for _ in range(20):
        schedule.check("NOTHING")
    assert schedule.is_within(LONGEST)


# Failures.


def test_failures_back_off(schedule: Schedule) -> None:
    schedule.compile()
    for backoff in (2.0**i for i in range(1, 20)):
        schedule.check("FAILED")
        assert schedule.is_within(min(backoff, LONGEST))


def test_a_call_shortens_no_backoff(schedule: Schedule) -> None:
    schedule.compile()
    for _ in range(5):
        schedule.check("FAILED")
    before = schedule.now + schedule.pause
    assert schedule.is_within(32)
    for _ in range(3):
        schedule.now += 2
        schedule.compile()
        assert schedule.now + schedule.pause == pytest.approx(before)


def test_a_call_that_runs_shortens_no_backoff(schedule: Schedule) -> None:
    schedule.begin()
    for _ in range(5):
        schedule.check("FAILED")
    assert schedule.is_within(32)


def test_a_call_during_a_checkpoint_that_fails_shortens_no_backoff(
    schedule: Schedule,
) -> None:
    schedule.compile()
    for _ in range(5):
        schedule.check("FAILED")
    schedule.now += schedule.pause
    schedule.start()
    schedule.compile()
    schedule.done("FAILED")
    assert schedule.is_within(64)


@pytest.mark.parametrize("found", ["NEW", "NOTHING"])
def test_a_success_ends_the_backoff(schedule: Schedule, found: str) -> None:
    schedule.compile()
    for _ in range(5):
        schedule.check("FAILED")
    schedule.check(found)
    schedule.compile()
    assert schedule.is_within(1)
    schedule.check("FAILED")
    assert schedule.is_within(2)


def test_what_fails_is_tried_again_until_it_succeeds(schedule: Schedule) -> None:
    schedule.compile()
    schedule.check("NOTHING")
    for _ in range(20):
        schedule.check("FAILED")
        assert schedule.is_due
    schedule.check("NEW")
    assert schedule.is_due


# Variation.


@pytest.mark.parametrize(("pause", "found"), [(1.0, ""), (2.0, "NEW"), (2.0, "FAILED")])
def test_pauses_vary_by_a_quarter(runtime: str, pause: float, found: str) -> None:
    def sample() -> float:
        schedule = Schedule(runtime)
        schedule.compile()
        if found:
            schedule.check(found)
        return schedule.pause / pause

    pauses = [sample() for _ in range(400)]
    assert 0.75 - EPSILON <= min(pauses) < 0.8
    assert 0.95 < max(pauses) <= 1 + EPSILON
    assert 0.85 < sum(pauses) / len(pauses) < 0.9
