"""Fixtures for tests that run over both runtimes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.py.runtime import runtime_testing
from tests.py.runtime.programs import Programs
from tests.py.runtime.runtime_cache_testing import (
    RUNTIMES,
    Log,
    MakeHandle,
    handle_of,
)
from torchtrt_cache.file_lock import is_in_block


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    """The runtime under test."""
    name: str = request.param
    return name


@pytest.fixture(params=RUNTIMES)
def other_runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make_handle(runtime: str) -> MakeHandle:
    return partial(handle_of, runtime)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the cache, in an empty directory."""
    return tmp_path / "cache.bin"


@pytest.fixture
def without_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that control when files are written."""
    monkeypatch.setenv("TORCHTRT_RUNTIME_CACHE_CHECKPOINTS", "0")


@pytest.fixture
def device() -> Iterator[Any]:
    """The simulated device, on which the test's engines are made, or None on a GPU."""
    with runtime_testing.device() as device:
        yield device


@pytest.fixture(scope="session")
def programs() -> Iterator[Programs]:
    programs = Programs()
    yield programs
    programs.close()


@pytest.fixture
def log(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Log:
    return Log(capfd, caplog)


@pytest.fixture(autouse=True)
def logs_without_the_lock() -> Iterator[None]:
    """Fails the test if the Python runtime logs while it holds the lock of a file."""
    under_the_lock: list[str] = []

    class LockObserver(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if is_in_block():
                under_the_lock.append(record.getMessage())

    observer = LockObserver()
    logger = logging.getLogger("torch_tensorrt")
    logger.addHandler(observer)
    yield
    logger.removeHandler(observer)
    assert under_the_lock == []
