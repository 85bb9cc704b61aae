"""RuntimeCache without an engine: its path, its streams and its entries in the exit registries."""

from __future__ import annotations

import atexit
import functools
import gc
import io
import multiprocessing.util
import os
import tempfile
from collections.abc import Iterator
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

BYTES = bytes(range(256)) * 20_000  # more than a chunk of load_from_stream


def filled(runtime: str, path: Path | str = "", data: bytes = BYTES) -> RuntimeCache:
    cache = make_cache(runtime, path)
    assert cache.load_from_stream(io.BytesIO(data)) == len(data)
    return cache


def contents(cache: RuntimeCache) -> bytes:
    stream = io.BytesIO()
    assert cache.save_to_stream(stream) == len(stream.getvalue())
    return stream.getvalue()


def test_starts_empty(runtime: str, path: Path) -> None:
    cache = make_cache(runtime, path)
    assert cache.path == str(path)
    assert cache.is_cpp_runtime() == (runtime == "cpp")
    assert not cache.autosave_on_del
    assert not cache.has_cache()
    assert (cache.load(), cache.save(), contents(cache)) == (0, 0, b"")
    assert list(path.parent.iterdir()) == []


def test_saves_and_loads(runtime: str, path: Path) -> None:
    cache = filled(runtime, path)
    assert cache.has_cache()
    assert (cache.save(), cache.save()) == (len(BYTES), 0)
    other = make_cache(runtime, path)
    assert other.load() == len(BYTES)
    assert contents(other) == path.read_bytes() == BYTES


def test_saves_to_and_loads_from_another_path(runtime: str, path: Path) -> None:
    cache = filled(runtime, "", b"kernels")
    for operation in (cache.save, cache.load):
        with pytest.raises(RuntimeError, match="no path of its own"):
            operation()
    assert cache.save(path) == 7
    assert make_cache(runtime).load(str(path)) == 7
    assert make_cache(runtime, path.with_name("missing.bin")).load(path) == 7


@pytest.mark.parametrize("wrong", [b"cache.bin", None, 3, ["cache.bin"]])
def test_a_path_is_a_str_or_a_path(runtime: str, wrong: Any) -> None:
    message = "a str or an os.PathLike of one, got "
    with pytest.raises(TypeError, match=message):
        make_cache(runtime, wrong)
    if wrong is not None:
        with pytest.raises(TypeError, match=message):
            make_cache(runtime).save(wrong)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [("cache\0.bin", "has a NUL in it"), ("cache\udcff.bin", "is not valid UTF-8")],
)
def test_a_path_that_can_be_no_files_is_refused(
    runtime: str, wrong: str, text: str
) -> None:
    message = f"path of a runtime cache {text}"
    cache = filled(runtime)
    for use in (lambda path: make_cache(runtime, path), cache.load, cache.save):
        for path in (wrong, Path(wrong)):
            with pytest.raises(ValueError, match=message):
                use(path)


def test_a_tilde_is_no_home(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("~").mkdir()
    filled(runtime, "~/cache.bin", b"kernels").save()
    assert tmp_path.joinpath("~", "cache.bin").read_bytes() == b"kernels"


def test_is_equal_to_itself_alone(runtime: str, path: Path) -> None:
    cache, other = make_cache(runtime, path), make_cache(runtime, path)
    assert cache != other
    assert {cache: 1, other: 2}[cache] == 1


def test_repr(runtime: str, path: Path) -> None:
    use_python = runtime == "python"
    assert repr(make_cache(runtime, path, autosave=True)) == (
        f"RuntimeCache({str(path)!r}, autosave_on_del=True, use_python_runtime={use_python})"
    )


def test_takes_the_cpp_runtime_by_default() -> None:
    assert RuntimeCache().is_cpp_runtime()


def test_a_missing_cpp_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ImportError("no library")
    monkeypatch.setattr(_runtime_cache, "library_error", lambda: error)
    assert not RuntimeCache().is_cpp_runtime()
    with pytest.raises(ImportError) as raised:
        RuntimeCache(use_python_runtime=False)
    assert raised.value is error


class Trickle(io.RawIOBase):
    """A raw stream that reads and writes at most 1000 bytes at a time."""

    def __init__(self, data: bytes = b"", capacity: int = len(BYTES)) -> None:
        self.data = bytearray(data)
        self._capacity = capacity

    def read(self, size: int = -1, /) -> bytes:
        chunk = bytes(self.data[: min(size, 1000)])
        del self.data[: len(chunk)]
        return chunk

    def write(self, data: Any, /) -> int:
        taken = min(1000, len(data), self._capacity - len(self.data))
        self.data += data[:taken]
        return taken


class Sink:
    """A writer that is not one of io's."""

    def __init__(self) -> None:
        self.views: list[memoryview] = []

    def write(self, data: memoryview) -> None:
        self.views.append(data)


class Nonblocking(io.RawIOBase):
    def read(self, size: int = -1, /) -> None:
        return None

    def write(self, data: Any, /) -> None:
        return None


def test_a_stream_that_trickles(runtime: str) -> None:
    data = BYTES[:10_500]
    cache = make_cache(runtime)
    assert cache.load_from_stream(Trickle(data)) == len(data)
    trickle = Trickle()
    assert cache.save_to_stream(trickle) == len(data)
    assert trickle.data == data


def test_streams_are_used_from_where_they_stand(runtime: str) -> None:
    stream = io.BytesIO(b"head" + b"kernels")
    stream.seek(4)
    cache = make_cache(runtime)
    assert cache.load_from_stream(stream) == 7
    assert cache.save_to_stream(stream) == 7
    assert stream.getvalue() == b"headkernelskernels"


def test_an_empty_stream_changes_nothing(runtime: str) -> None:
    cache = filled(runtime)
    assert cache.load_from_stream(io.BytesIO()) == 0
    assert contents(cache) == BYTES


def test_what_a_stream_keeps_stays_valid_and_can_not_be_written_to(
    runtime: str,
) -> None:
    cache, sink = filled(runtime), Sink()
    assert cache.save_to_stream(sink) == len(BYTES)
    del cache
    gc.collect()
    assert b"".join(sink.views) == BYTES
    assert all(view.readonly for view in sink.views)


def text_streams() -> Iterator[Any]:
    yield io.StringIO("kernels")
    yield io.TextIOWrapper(io.BytesIO(b"\xff\xff"), encoding="utf-8")
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8") as file:
        file.write("kernels")
        file.seek(0)
        yield file


def test_text_streams_are_refused(runtime: str) -> None:
    for stream in text_streams():
        cache = filled(runtime, data=b"mine")
        with pytest.raises(TypeError, match="not a binary stream"):
            cache.load_from_stream(stream)
        with pytest.raises(TypeError, match="not a binary stream"):
            cache.save_to_stream(stream)
        assert contents(cache) == b"mine"


def test_streams_that_block_or_are_full(runtime: str) -> None:
    cache = filled(runtime)
    with pytest.raises(BlockingIOError, match="has no bytes yet"):
        cache.load_from_stream(Nonblocking())
    with pytest.raises(OSError, match=f"took 0 of {len(BYTES)} bytes"):
        cache.save_to_stream(Nonblocking())
    with pytest.raises(OSError, match=f"took 1500 of {len(BYTES)} bytes"):
        cache.save_to_stream(Trickle(capacity=1500))
    assert contents(cache) == BYTES


def registered() -> tuple[int, int]:
    """The numbers of caches that atexit and multiprocessing keep alive."""
    # Not atexit._ncallbacks(): before CPython 3.14 it also counts what was unregistered.
    tokens = sum(
        type(thing) is functools.partial  # isinstance would load lazy objects
        and thing.func is _runtime_cache._autosave_at_exit
        for thing in gc.get_objects()
    )
    finalizers: Any = getattr(multiprocessing.util, "_finalizer_registry")
    return tokens, len(finalizers)


@pytest.mark.parametrize("is_worker", [False, True])
def test_dropped_caches_leave_the_exit_registries_as_they_were(
    runtime: str, is_worker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_worker:
        monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    gc.collect()
    tokens, finalizers = registered()
    kept = [make_cache(runtime, autosave=True) for _ in range(3)]
    assert registered() == (tokens + 3, finalizers + 3 * is_worker)
    for _ in range(10_000):
        make_cache(runtime, autosave=True)
    assert registered() == (tokens + 3, finalizers + 3 * is_worker)
    del kept
    assert registered() == (tokens, finalizers)


def test_a_cache_is_registered_while_it_autosaves(runtime: str) -> None:
    slots = atexit._ncallbacks()
    cache = make_cache(runtime)
    assert atexit._ncallbacks() == slots
    gc.collect()
    tokens, _ = registered()
    for _ in range(2):
        cache.autosave_on_del = True
        assert registered()[0] == tokens + 1
    for _ in range(2):
        cache.autosave_on_del = False
        assert registered()[0] == tokens


def test_autosaves_when_it_goes(runtime: str, path: Path) -> None:
    cache = filled(runtime, path, b"kernels")
    del cache
    assert not path.exists()
    cache = filled(runtime, path, b"kernels")
    cache.autosave_on_del = True
    del cache
    assert path.read_bytes() == b"kernels"


def test_without_a_path_there_is_nothing_to_autosave(
    runtime: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = filled(runtime)
    cache.autosave_on_del = True
    del cache
    assert caplog.records == []


def test_an_autosave_that_fails_is_one_warning(
    runtime: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "missing" / "cache.bin"
    cache = filled(runtime, path, b"kernels")
    cache.autosave_on_del = True
    del cache
    (record,) = caplog.records
    assert (record.name, record.levelname) == (_runtime_cache.__name__, "WARNING")
    assert record.getMessage().startswith(f"Can't save the runtime cache '{path}': ")
    assert record.getMessage().endswith("No such file or directory")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_nothing_leaves_an_autosave(
    runtime: str,
    path: Path,
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def save(self: RuntimeCache) -> int:
        raise error("in the save")

    monkeypatch.setattr(RuntimeCache, "save", save)
    cache = make_cache(runtime, path, autosave=True)
    cache._autosave_if_enabled()
    (record,) = caplog.records
    assert f"{error.__name__}: in the save" in record.getMessage()


def test_a_log_handler_that_fails_does_not_stop_an_autosave(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warning(*_: object) -> None:
        raise OSError("the log is full")

    monkeypatch.setattr(_runtime_cache.logger, "warning", warning)
    cache = filled(runtime, tmp_path / "missing" / "cache.bin")
    cache.autosave_on_del = True
    cache._autosave_if_enabled()
    assert not cache.autosave_on_del


def test_save_or_warn_leaves_autosave_on(runtime: str, path: Path) -> None:
    cache = filled(runtime, path)
    cache.autosave_on_del = True
    cache._save_or_warn()
    assert path.read_bytes() == BYTES
    assert cache.autosave_on_del
    path.unlink()
    del cache
    assert path.read_bytes() == BYTES


def test_a_cache_that_is_collected_in_a_save_is_saved_after_it(
    runtime: str, path: Path, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [make_plan(name) for name in "ab"]
    cache = make_cache("python", path)
    start("python", plans[0], cache)
    dropped: Any = make_cache(runtime, path, autosave=True)
    start(runtime, plans[1], dropped)
    dropped.itself = dropped
    del dropped
    sync = os.fsync

    def collect_and_sync(file: int) -> None:
        gc.collect()
        sync(file)

    monkeypatch.setattr(os, "fsync", collect_and_sync)
    assert cache.save() > 0
    assert kernels_missing(runtime, path, *plans) == 0
