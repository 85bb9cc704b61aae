"""Checkpoints that fail: there are few warnings, and nothing is lost once the cause is gone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.py.runtime.runtime_cache_testing import Log
from tests.py.runtime.runtime_testing import (
    kernels_missing,
    make_plan,
    start,
    uses_gpu,
    wait_for_kernels,
    wait_until,
)
from torch_tensorrt.logging import info
from torch_tensorrt.runtime._cache.checkpoint_thread import checkpoint_thread

SIMULATED = pytest.mark.skipif(uses_gpu(), reason="needs calls of TensorRT-RTX to fail")
FAILURE = "Can't save the runtime cache"


class Failures:
    """The failures of checkpoints that were logged."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.lines: list[str] = []

    def __len__(self) -> int:
        self.lines += [line for line in self._log.lines() if FAILURE in line]
        return len(self.lines)

    def levels(self) -> list[str]:
        return [line.split(":")[0] for line in self.lines[: len(self)]]


def test_what_fails_for_a_while_is_one_warning_and_saved_later(
    runtime: str, tmp_path: Path, device: Any, log: Log
) -> None:
    path = tmp_path / "folder" / "cache.bin"  # missing, so that no checkpoint succeeds
    failures = Failures(log)
    with info():
        module = start(runtime, make_plan("a"), path)
        wait_until(lambda: len(failures) == 2)
        path.parent.mkdir()
        wait_for_kernels(runtime, path, make_plan("a"))
        assert failures.levels() == ["WARNING", "INFO"]
        assert str(path) in failures.lines[0]
        assert failures.lines[0].endswith("No such file or directory")
        # After a success, the next failure is a warning again.
        path.parent.rename(tmp_path / "elsewhere")
        other = start(runtime, make_plan("b"), path)
        wait_until(lambda: len(failures) == 3)
        assert failures.levels() == ["WARNING", "INFO", "WARNING"]
        (tmp_path / "elsewhere").rename(path.parent)
    del module, other
    assert kernels_missing(runtime, path, make_plan("a"), make_plan("b")) == 0


def test_another_cause_is_another_warning(
    runtime: str, tmp_path: Path, device: Any, log: Log
) -> None:
    path = tmp_path / "folder" / "cache.bin"
    failures = Failures(log)
    with info():
        module = start(runtime, make_plan("a"), path)
        wait_until(lambda: len(failures) == 1)
        path.parent.touch()
        wait_until(lambda: len(failures) == 2)
    assert failures.levels() == ["WARNING", "WARNING"]
    assert failures.lines[0].endswith("No such file or directory")
    assert failures.lines[1].endswith("Not a directory")
    path.parent.unlink()
    path.parent.mkdir()
    del module
    assert kernels_missing(runtime, path, make_plan("a")) == 0


def test_a_process_that_can_start_no_thread_is_warned_once(
    path: Path, device: Any, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(checkpoint_thread, "_thread", None)
    monkeypatch.setattr(threading.Thread, "start", fail)
    modules = [start("python", make_plan(name), path) for name in "ab"]
    (warning,) = log.warnings()
    assert warning.endswith(
        "Runtime caches are not saved while the process runs, because no thread can be started: "
        "can't start new thread"
    )
    modules.clear()
    assert kernels_missing("python", path, *map(make_plan, "ab")) == 0


@SIMULATED
def test_tensorrt_rtx_that_fails_is_a_warning_too(
    runtime: str, path: Path, device: Any, log: Log
) -> None:
    module = start(runtime, make_plan("a"), path)
    device.fail("IRuntimeCache::serialize", 1)
    # A checkpoint may already have saved what the first one compiled.
    other = start(runtime, make_plan("b"), path)
    warnings: list[str] = []

    def is_warned() -> bool:
        warnings.extend(log.warnings())
        return len(warnings) > 0

    wait_until(is_warned)
    (warning,) = warnings
    assert f"could not serialize the runtime cache '{path}'" in warning
    wait_for_kernels(runtime, path, make_plan("a"), make_plan("b"))
    del module, other
