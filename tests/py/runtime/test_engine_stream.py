"""The streams on which inferences run, and the events that they wait for.

Needs no GPU: torch.cuda is replaced by a fake. The twin of tests/cpp/test_engine_stream.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from torch_tensorrt.runtime._engine.engine_stream import EngineStream

DEFAULT, SIDE, OTHER_SIDE, POOL = range(4)


@dataclass
class FakeCuda:
    """The calls that torch.cuda received. Events are numbered in order of their first use."""

    current: int = DEFAULT
    is_capturing: bool = False
    events: int = 0
    told: list[str] = field(default_factory=list)


class FakeStream:
    def __init__(self, cuda: FakeCuda, number: int) -> None:
        self._cuda = cuda
        self.number = number
        self.cuda_stream = 100 + number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FakeStream) and self.number == other.number

    def wait_event(self, event: FakeEvent) -> None:
        self._cuda.told.append(f"{self.number} waits for {event.number}")


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.number = 0

    def record(self, stream: FakeStream) -> None:
        if self.number == 0:
            self._cuda.events += 1
            self.number = self._cuda.events
        self._cuda.told.append(f"event {self.number} on {stream.number}")

    def synchronize(self) -> None:
        self._cuda.told.append(f"host waits for {self.number}")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    cuda = FakeCuda()

    def new_stream(_: torch.device) -> FakeStream:
        cuda.told.append("takes a stream")
        return FakeStream(cuda, POOL)

    for name, fake in (
        ("current_stream", lambda _: FakeStream(cuda, cuda.current)),
        ("default_stream", lambda _: FakeStream(cuda, DEFAULT)),
        ("Stream", new_stream),
        ("Event", lambda: FakeEvent(cuda)),
        ("is_current_stream_capturing", lambda: cuda.is_capturing),
    ):
        monkeypatch.setattr(torch.cuda, name, fake)
    return cuda


@pytest.fixture
def stream(cuda: FakeCuda) -> EngineStream:
    return EngineStream(torch.device("cuda", 0))


def run_on(current: int, stream: EngineStream, cuda: FakeCuda) -> list[str]:
    """Returns the calls that the device receives during one inference on that stream."""
    cuda.current = current
    cuda.told.clear()
    handle = stream.begin()
    cuda.told.append(f"runs on {handle - 100}")
    stream.end()
    return cuda.told.copy()


def test_runs_on_the_current_stream(stream: EngineStream, cuda: FakeCuda) -> None:
    assert run_on(SIDE, stream, cuda) == ["runs on 1", "event 1 on 1"]
    assert run_on(SIDE, stream, cuda) == ["runs on 1", "event 1 on 1"]


def test_waits_for_an_inference_on_another_stream(
    stream: EngineStream, cuda: FakeCuda
) -> None:
    run_on(SIDE, stream, cuda)
    expected = ["2 waits for 1", "runs on 2", "event 1 on 2"]
    assert run_on(OTHER_SIDE, stream, cuda) == expected
    assert run_on(OTHER_SIDE, stream, cuda) == expected[1:]


def test_has_a_stream_of_its_own_for_the_default_one(
    stream: EngineStream, cuda: FakeCuda
) -> None:
    expected = ["event 1 on 0", "3 waits for 1"]
    expected += ["runs on 3", "event 2 on 3", "0 waits for 2"]
    assert run_on(DEFAULT, stream, cuda) == ["takes a stream", *expected]
    assert run_on(DEFAULT, stream, cuda) == expected


def test_changes_between_the_default_stream_and_others(
    stream: EngineStream, cuda: FakeCuda
) -> None:
    run_on(DEFAULT, stream, cuda)
    assert run_on(SIDE, stream, cuda) == ["1 waits for 2", "runs on 1", "event 2 on 1"]
    expected = ["event 1 on 0", "3 waits for 1", "3 waits for 2"]
    expected += ["runs on 3", "event 2 on 3", "0 waits for 2"]
    assert run_on(DEFAULT, stream, cuda) == expected


def test_waits_on_the_host_for_the_last_inference(
    stream: EngineStream, cuda: FakeCuda
) -> None:
    stream.synchronize()
    assert cuda.told == []
    run_on(SIDE, stream, cuda)
    cuda.told.clear()
    stream.synchronize()
    assert cuda.told == ["host waits for 1"]


def test_while_capturing_nothing_is_waited_for(
    stream: EngineStream, cuda: FakeCuda
) -> None:
    run_on(SIDE, stream, cuda)
    cuda.is_capturing = True
    assert stream.is_capturing()
    assert run_on(OTHER_SIDE, stream, cuda) == ["runs on 2"]
    cuda.is_capturing = False
    assert not stream.is_capturing()
    assert run_on(SIDE, stream, cuda) == ["runs on 1", "event 1 on 1"]


def test_a_cpu_has_none() -> None:
    stream = EngineStream(torch.device("cpu"))
    assert not stream.is_capturing()
    assert stream.begin() == 0
    stream.end()
    stream.synchronize()
