"""Fixtures for tests that run over both runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.py.dynamo.runtime import runtime_testing


@pytest.fixture(params=runtime_testing.RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a runtime cache that there is not yet."""
    return tmp_path / "cache.bin"


@pytest.fixture
def device() -> Iterator[Any]:
    """The simulated device, on which the test's engines are made; None on a GPU."""
    with runtime_testing.device() as device:
        yield device
