"""Makes the fixtures of tests/py/runtime available here."""

from __future__ import annotations

from tests.py.runtime.conftest import (
    device,
    logs_without_the_lock,
    path,
    runtime,
    without_checkpoints,
)

__all__ = ["device", "logs_without_the_lock", "path", "runtime", "without_checkpoints"]
