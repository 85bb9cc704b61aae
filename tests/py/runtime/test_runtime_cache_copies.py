"""Pickled and copied caches, and caches whose construction failed halfway."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.py.runtime.runtime_testing import (
    kernels_missing,
    make_cache,
    make_plan,
    start,
)
from torch_tensorrt.runtime import RuntimeCache, _runtime_cache

Duplicate = Callable[[RuntimeCache], RuntimeCache]


def unpickled(cache: RuntimeCache) -> RuntimeCache:
    other = pickle.loads(pickle.dumps(cache))
    assert isinstance(other, RuntimeCache)
    return other


DUPLICATES = pytest.mark.parametrize(
    "duplicate",
    [unpickled, copy.deepcopy, copy.copy],
    ids=["pickle", "deepcopy", "copy"],
)


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The arguments passed to sys.unraisablehook. There must be none."""
    reached: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", reached.append)
    yield reached
    gc.collect()
    assert reached == []


def filled(runtime: str, path: Path, autosave: bool = False) -> RuntimeCache:
    cache = make_cache(runtime, path, autosave)
    cache.load_from_stream(io.BytesIO(b"kernels"))
    return cache


@DUPLICATES
@pytest.mark.parametrize("autosave", [False, True])
def test_a_copy_has_all_but_the_anchor(
    runtime: str, path: Path, autosave: bool, duplicate: Duplicate
) -> None:
    cache = filled(runtime, path, autosave)
    other = duplicate(cache)
    assert repr(other) == repr(cache)
    assert other != cache
    stream = io.BytesIO()
    other.save_to_stream(stream)
    assert stream.getvalue() == b"kernels"
    assert (other._atexit_token is None) == (not autosave)
    assert other._atexit_token is not cache._atexit_token or not autosave
    cache.autosave_on_del = False
    del cache
    assert not path.exists()
    del other
    assert path.exists() == autosave


@DUPLICATES
def test_a_copy_of_a_used_cache_has_its_kernels(
    runtime: str, path: Path, device: Any, duplicate: Duplicate
) -> None:
    plan = make_plan("a")
    cache = make_cache(runtime, path)
    start(runtime, plan, cache)
    other = duplicate(cache)
    assert other.save() > 0
    assert kernels_missing(runtime, path, plan) == 0


@DUPLICATES
def test_a_copy_does_not_overwrite_a_newer_file(
    runtime: str, path: Path, duplicate: Duplicate
) -> None:
    path.write_bytes(b"old")
    cache = make_cache(runtime, path)
    cache.load()
    other = duplicate(cache)
    path.write_bytes(b"newer")
    assert other.save() == 0
    assert path.read_bytes() == b"newer"


def test_without_the_cpp_runtime_a_copy_is_of_the_python_one(
    runtime: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickled = pickle.dumps(filled(runtime, path))
    monkeypatch.setattr(_runtime_cache, "library_error", lambda: ImportError("gone"))
    cache = pickle.loads(pickled)
    assert not cache.is_cpp_runtime()
    assert cache.save() == 7
    assert path.read_bytes() == b"kernels"


def test_another_process_unpickles(runtime: str, path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"],
        input=pickle.dumps(filled(runtime, path, autosave=True)),
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert path.read_bytes() == b"kernels"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_worker_takes_over_bytes(runtime: str, path: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    cache = filled(runtime, path)
    worker = getattr(context, "Process")(target=RuntimeCache.save, args=(cache,))
    worker.start()
    del cache
    worker.join()
    assert worker.exitcode == 0
    assert path.read_bytes() == b"kernels"


@pytest.mark.usefixtures("unraisable")
def test_half_a_pickle(runtime: str, path: Path) -> None:
    pickled = pickle.dumps(filled(runtime, path, autosave=True))
    path.unlink()
    for size in range(0, len(pickled), 7):
        with pytest.raises((EOFError, pickle.UnpicklingError, IndexError)):
            pickle.loads(pickled[:size])
    gc.collect()
    assert not path.exists()


@pytest.mark.usefixtures("unraisable")
@pytest.mark.parametrize("missing", ["handle", "is_cpp_runtime", "autosave_on_del"])
def test_a_state_that_lacks_something(runtime: str, path: Path, missing: str) -> None:
    state = filled(runtime, path, autosave=True).__getstate__()
    path.unlink()
    del state[missing]
    cache = RuntimeCache.__new__(RuntimeCache)
    with pytest.raises(KeyError, match=missing):
        cache.__setstate__(state)
    del cache
    assert not path.exists()


@pytest.mark.usefixtures("unraisable")
def test_one_that_was_never_made(
    runtime: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    RuntimeCache.__new__(RuntimeCache)
    with pytest.raises(TypeError):
        make_cache(runtime, 3, autosave=True)  # type: ignore[arg-type]

    def fail(*_: object) -> None:
        raise MemoryError("half-way")

    monkeypatch.setattr(_runtime_cache, "_make_handle", fail)
    with pytest.raises(MemoryError, match="half-way"):
        make_cache(runtime, autosave=True)
    gc.collect()
    assert caplog.records == []
