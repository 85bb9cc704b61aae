"""When a cache file is pushed while others save it, with simulated times."""

from __future__ import annotations

import pytest

from torchtrt_cache.runtime_cache_file import FileGeneration
from torchtrt_cache.upload_schedule import UploadSchedule

EPSILON = 1e-6  # seconds, like all times here


class Watcher:
    """An UploadSchedule, a clock, and a file that the test changes."""

    def __init__(self) -> None:
        self.schedule = UploadSchedule()
        self.now = 1000.0
        self.generation: FileGeneration | None = None
        self.is_uploaded = False

    def change(self) -> None:
        time = self.generation.mtime_ns + 1 if self.generation else 0
        self.generation = FileGeneration(1, 2, 3, time)
        self.is_uploaded = False

    def look(self) -> None:
        self.schedule.saw(self.now, self.generation, self.is_uploaded)

    def pass_time(self, seconds: float) -> None:
        """Looks whenever the schedule requests it."""
        end = self.now + seconds
        while (look := self.schedule.next_look(self.now)) <= end:
            assert look >= self.now
            self.now = look
            self.look()
        self.now = end

    @property
    def pause(self) -> float:
        """The time from now to the next push."""
        due = self.schedule.due()
        assert due is not None
        return due - self.now

    def is_within(self, pause: float) -> bool:
        """Returns True if the next push comes after that pause, which varies randomly."""
        return 0.75 * pause - EPSILON <= self.pause <= pause + EPSILON

    def is_due(self) -> bool:
        return self.schedule.due() is not None


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


def test_the_first_look_is_at_once(watcher: Watcher) -> None:
    assert watcher.schedule.next_look(watcher.now) == watcher.now
    assert not watcher.is_due()


def test_looks_come_at_pauses_that_grow_while_nothing_changes(watcher: Watcher) -> None:
    pauses = []
    for _ in range(6):
        watcher.look()
        pauses.append(watcher.schedule.next_look(watcher.now) - watcher.now)
        watcher.now += pauses[-1]
    assert pauses == [2, 4, 8, 10, 10, 10]
    watcher.change()
    watcher.look()
    assert watcher.schedule.next_look(watcher.now) == watcher.now + 1


def test_a_look_that_is_overdue_is_now(watcher: Watcher) -> None:
    watcher.look()
    assert watcher.schedule.next_look(watcher.now + 100) == watcher.now + 100


def test_a_file_without_an_upload_is_due_when_it_rests(watcher: Watcher) -> None:
    watcher.change()
    watcher.look()
    assert watcher.is_within(5)
    due = watcher.schedule.due()
    watcher.pass_time(4)
    assert watcher.schedule.due() == due


def test_each_change_puts_a_push_off_until_the_longest_delay(watcher: Watcher) -> None:
    start = watcher.now
    while True:
        watcher.change()
        watcher.look()
        if not watcher.is_within(5):
            break
        watcher.now += 1
        assert watcher.now < start + 60
    due = watcher.schedule.due()
    assert due is not None
    assert start + 45 - EPSILON <= due <= start + 60 + EPSILON
    watcher.now += 1
    watcher.change()
    watcher.look()
    assert watcher.schedule.due() == due


def test_nothing_is_due_without_a_file_or_after_an_upload(watcher: Watcher) -> None:
    watcher.change()
    watcher.look()
    watcher.is_uploaded = True
    watcher.look()
    assert not watcher.is_due()
    watcher.change()
    watcher.look()
    assert watcher.is_due()
    watcher.generation = None
    watcher.look()
    assert not watcher.is_due()


def test_the_longest_delay_starts_with_the_first_change_after_an_upload(
    watcher: Watcher,
) -> None:
    watcher.change()
    watcher.look()
    watcher.is_uploaded = True
    watcher.look()
    watcher.now += 1000
    watcher.change()
    watcher.look()
    assert watcher.is_within(5)


def test_failures_are_repeated_at_pauses_that_grow(watcher: Watcher) -> None:
    watcher.change()
    watcher.look()
    for pause in (10, 20, 40, 80, 160, 320, 600, 600, *[600] * 2000):
        watcher.now += watcher.pause
        watcher.schedule.failed(watcher.now)
        assert watcher.is_within(pause)
    watcher.schedule.done(watcher.now)
    watcher.change()
    watcher.look()
    assert watcher.is_within(5)
    watcher.now += watcher.pause
    watcher.schedule.failed(watcher.now)
    assert watcher.is_within(10)


def test_a_change_after_a_failure_does_not_hasten_the_push(watcher: Watcher) -> None:
    watcher.change()
    watcher.look()
    watcher.schedule.failed(watcher.now)
    watcher.schedule.failed(watcher.now)
    due = watcher.schedule.due()
    watcher.pass_time(2)
    watcher.change()
    watcher.look()
    assert watcher.schedule.due() == due


def test_a_push_in_vain_is_repeated_only_after_a_change(watcher: Watcher) -> None:
    watcher.change()
    watcher.look()
    watcher.schedule.done(watcher.now)
    watcher.pass_time(100)
    assert not watcher.is_due()
    watcher.change()
    watcher.pass_time(10)
    assert watcher.is_due()


def test_a_file_that_changed_during_a_push_is_due_again(watcher: Watcher) -> None:
    watcher.change()
    watcher.look()
    watcher.change()
    watcher.schedule.done(watcher.now)
    watcher.pass_time(1)
    assert watcher.is_within(5)
