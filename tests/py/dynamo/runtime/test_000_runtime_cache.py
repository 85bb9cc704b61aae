"""Saves of RuntimeCache: when it is deleted, and beside other savers under the file's lock."""

from __future__ import annotations

import atexit
import gc
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.py.runtime.runtime_cache_testing import RUNTIMES
from tests.py.runtime.runtime_testing import (
    DEADLINE,
    children,
    kernels_missing,
    make_cache,
    make_plan,
    start,
    start_and_save,
)
from torch_tensorrt.runtime import RuntimeCache
from torch_tensorrt.runtime._runtime_cache import _autosave_at_exit


class ShuttingDownHandle:
    """Acts like torchbind's handle once the interpreter has torn down its imports."""

    def __init__(self) -> None:
        self.reads: list[str] = []

    @property
    def path(self) -> str:
        self.reads.append("path")
        raise ImportError("sys.meta_path is None, Python is likely shutting down")


class TestRuntimeCacheAutosave:
    @pytest.fixture
    def saves(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The paths of the caches for which save() was called. Nothing is written."""
        saves: list[str] = []
        monkeypatch.setattr(RuntimeCache, "save", lambda self: saves.append(self.path))
        return saves

    def test_del_swallows_shutdown_import_error_on_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unraisable: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        handle = ShuttingDownHandle()
        cache = RuntimeCache(str(tmp_path / "cache.bin"), autosave_on_del=True)
        cache._handle = handle  # type: ignore[assignment]
        del cache
        gc.collect()
        assert handle.reads
        assert unraisable == []

    def test_atexit_hook_saves_via_weakref(
        self, tmp_path: Path, saves: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = str(tmp_path / "cache.bin")
        cache = RuntimeCache(path, autosave_on_del=True)
        autosaves: list[RuntimeCache] = []
        autosave = RuntimeCache._autosave_if_enabled

        def autosave_if_enabled(self: RuntimeCache) -> None:
            autosaves.append(self)
            autosave(self)

        with monkeypatch.context() as patched:
            patched.setattr(RuntimeCache, "_autosave_if_enabled", autosave_if_enabled)
            _autosave_at_exit(weakref.ref(cache))
        assert autosaves == [cache]
        assert saves == [path]
        assert not cache.autosave_on_del
        autosaves.clear()
        del cache
        gc.collect()
        assert saves == [path]

    def test_atexit_hook_no_op_on_dead_weakref(
        self, tmp_path: Path, saves: list[str]
    ) -> None:
        path = str(tmp_path / "cache.bin")
        cache = RuntimeCache(path, autosave_on_del=True)
        dead = weakref.ref(cache)
        del cache
        gc.collect()
        assert dead() is None
        assert saves == [path]
        _autosave_at_exit(dead)
        assert saves == [path]

    def test_atexit_token_unregistered_after_del(
        self, tmp_path: Path, saves: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unregistered: list[Any] = []
        unregister = atexit.unregister

        def spy(token: Any) -> None:
            unregistered.append(token)
            unregister(token)

        monkeypatch.setattr(atexit, "unregister", spy)
        cache = RuntimeCache(str(tmp_path / "cache.bin"), autosave_on_del=True)
        token = cache._atexit_token
        assert token is not None
        assert unregistered == []
        del cache
        gc.collect()
        assert len(unregistered) == 1
        assert unregistered[0] is token


def test_filelock_works(runtime: str, path: Path, device: Any) -> None:
    plan = make_plan("a")
    cache = make_cache(runtime, path)
    start(runtime, plan, cache)
    saving = threading.Thread(target=cache.save)
    with FileLock(f"{path}.lock"):
        saving.start()
        saving.join(timeout=0.2)
        assert saving.is_alive()
        assert not path.exists()
    saving.join()
    assert kernels_missing(runtime, path, plan) == 0
    with FileLock(f"{path}.lock", timeout=0):
        pass


def test_sequential_save_load(runtime: str, path: Path, device: Any) -> None:
    plans = [make_plan(name) for name in "abc"]
    for i, plan in enumerate(plans):
        cache = make_cache(runtime, path)
        assert (cache.load() > 0) == (i > 0)
        start(runtime, plan, cache)
        assert cache.save() > 0
    assert kernels_missing(runtime, path, *plans) == 0


def test_python_lock_blocks_cpp_save(
    path: Path, device: Any, caplog: pytest.LogCaptureFixture
) -> None:
    plans = [make_plan(name) for name in "ab"]
    start_and_save("cpp", path, plans[0])
    before = path.read_bytes()
    cache = make_cache("cpp", path, autosave=True)
    start("cpp", plans[1], cache)
    with FileLock(f"{path}.lock"):
        cache._autosave_if_enabled()
        assert path.read_bytes() == before
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"'{path}.lock'" in record.getMessage()
    assert cache.save() > 0
    assert kernels_missing("cpp", path, *plans) == 0


def test_filelock_cross_runtime_parallel(path: Path, device: Any) -> None:
    plans = [make_plan(name) for name in RUNTIMES]
    with children(2) as processes:
        saves = [
            process.begin(start_and_save, runtime, path, plan)
            for process, runtime, plan in zip(processes, RUNTIMES, plans, strict=True)
        ]
        assert min(save.result(DEADLINE) for save in saves) > 0
    for runtime in RUNTIMES:
        assert kernels_missing(runtime, path, *plans) == 0
    # A cache that found the other one's kernels waited for its turn to merge.
    assert {entry.name for entry in path.parent.iterdir()} - {
        f"{path.name}.merge.lock"
    } == {path.name, f"{path.name}.lock"}
