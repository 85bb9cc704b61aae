"""Fixtures for tests that run over the cache handles of both runtimes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.py.runtime.runtime_cache_testing import KINDS, Log, MakeHandle, handle_of


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The runtime under test."""
    name: str = request.param
    return name


@pytest.fixture
def make_handle(kind: str) -> MakeHandle:
    return partial(handle_of, kind)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the cache goes, in a directory that is empty."""
    return tmp_path / "cache.bin"


@pytest.fixture
def log(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Log:
    return Log(capfd, caplog)
