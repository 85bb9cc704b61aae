"""A worker's end is a result, whatever it is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tools.gpu.questions.workers import Worker, WorkerDied, WorkerError, WorkerHung

_calls: list[str] = []


def begin(text: str) -> None:
    os.write(1, b"begun, ")
    os.write(2, b"ready\n")
    _calls.append(text)


def calls() -> list[str]:
    return _calls


def fail() -> None:
    raise ValueError("no such plan")


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    os._exit(3)


Start = Callable[..., Worker]


@pytest.fixture(params=[True, False], ids=["fresh", "forked"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Start:
    """Starts a worker that begins with the function and arguments it is given."""
    return partial(Worker, tmp_path / "log", request.param)


def test_calls_follow_one_another_in_one_process(start: Start) -> None:
    with start(begin, "hello") as worker:
        assert worker(calls) == ["hello"]
        assert worker(os.getpid) == worker(os.getpid) != os.getpid()
        assert worker.output() == "begun, ready\n"
        assert worker.close() == 0


def test_an_exception_leaves_the_worker_usable(start: Start) -> None:
    with start(begin, "") as worker:
        with pytest.raises(WorkerError, match=r"^ValueError: no such plan$") as raised:
            worker(fail)
        assert "in fail" in raised.value.details
        assert worker(calls) == [""]


@pytest.mark.parametrize(
    ("function", "text"),
    [(crash, "killed by SIGSEGV"), (leave, "ended with exit status 3")],
)
def test_an_end_is_told(function: Callable[[], None], text: str, start: Start) -> None:
    with start(begin, "") as worker:
        with pytest.raises(WorkerDied, match=text):
            worker(function)
        with pytest.raises(WorkerDied, match=text):
            worker(calls)


def test_an_end_before_the_first_call_is_told(start: Start) -> None:
    with start(crash) as worker, pytest.raises(WorkerDied, match="SIGSEGV"):
        worker.wait_until_ready()


def test_a_call_that_does_not_answer_is_killed(start: Start) -> None:
    with start(begin, "") as worker:
        worker.wait_until_ready()
        with pytest.raises(WorkerHung, match=r"no answer within 0\.1 s"):
            worker(time.sleep, 600, timeout=0.1)
