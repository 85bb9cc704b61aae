"""Every system call that a load or save of the Python runtime makes fails in turn.

The same for the C++ runtime is tests/cpp/test_runtime_cache_file_faults.cpp.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import pytest

from tests.py.runtime.runtime_cache_testing import Log, names_in
from torch_tensorrt.runtime._cache.runtime_cache_file import RuntimeCacheFile

CALLS: dict[str, Any] = {
    "open": os,
    "fstat": os,
    "stat": os,
    "lstat": os,
    "readlink": os,
    "listdir": os,
    "preadv": os,
    "pwrite": os,
    "fsync": os,
    "rename": os,
    "ftruncate": os,
    "fchmod": os,
    "fchown": os,
    "utime": os,
    "flock": fcntl,
}


class Faults:
    """Which call fails while these are armed, and how."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        call: int = 0,
        error: int = 0,
        only: str = "",
        always: dict[str, int] | None = None,
        most_bytes: int | None = None,
    ) -> None:
        """The `call`-th fails with `error`, counting `only` those of a name, or all."""
        self.failed = ""
        self._monkeypatch = monkeypatch
        self._calls_until_failure = call
        self._error = error
        self._only = only
        self._always = always or {}
        self._most_bytes = most_bytes

    @contextmanager
    def armed(self) -> Iterator[None]:
        with self._monkeypatch.context() as patch:
            for name, module in CALLS.items():
                patch.setattr(module, name, self._failing(name, getattr(module, name)))
            yield

    def _failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            error = self._always.get(name, 0)
            if self._calls_until_failure > 0 and self._only in ("", name):
                self._calls_until_failure -= 1
                if self._calls_until_failure == 0:
                    self.failed = name
                    error = self._error
            if error:
                # A call on a path tells it, as the real one does.
                about = [text for text in arguments[:1] if isinstance(text, str)]
                raise OSError(error, os.strerror(error), *about)
            if self._most_bytes is not None and name in ("preadv", "pwrite"):
                file, data, offset = arguments
                view = data[0] if name == "preadv" else data
                view = view[: self._most_bytes]
                return real(file, [view] if name == "preadv" else view, offset)
            return real(*arguments, **named)

        return call


def concatenate(disk: memoryview, ours: memoryview) -> memoryview:
    return memoryview(bytes(disk) + bytes(ours))


def reset(path: Path) -> None:
    """The time lies ahead, so that a save has to set the new file's, whatever the clock says."""
    path.write_bytes(b"theirs,")
    future = time.time_ns() + 3600 * 10**9
    os.utime(path, ns=(future, future))


def loaded(path: Path) -> bytes:
    """As the next process finds it."""
    buffer = bytearray()

    def allocate(size: int) -> memoryview:
        nonlocal buffer
        buffer = bytearray(size)
        return memoryview(buffer)

    RuntimeCacheFile(str(path), 0).load(allocate)
    return bytes(buffer)


def save_with(faults: Faults, path: Path) -> str:
    """What the save raised; empty if it succeeded."""
    file = RuntimeCacheFile(str(path), 0)
    try:
        with faults.armed():
            file.save(memoryview(b"ours"), concatenate)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_save_that_fails_anywhere_leaves_the_old_file_and_no_litter(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    failed = set()
    for call in range(1, 1000):
        reset(path)
        faults = Faults(monkeypatch, call=call, error=error)
        message = save_with(faults, path)
        if not faults.failed:
            break
        failed.add(faults.failed)
        where = f"call {call}, of {faults.failed}"
        if message:
            assert f"Can't save the runtime cache '{path}': " in message, where
            assert os.strerror(error) in message, where
        was_last_step = f" '{path.parent}': " in message
        expected = b"theirs," if message and not was_last_step else b"theirs,ours"
        assert loaded(path) == expected, where
        assert names_in(path.parent) <= {"cache.bin", "cache.bin.lock"}, where
    # filelock before 4.2 truncates its lock file.
    assert failed - {"ftruncate"} == CALLS.keys() - {"ftruncate"}


def test_a_load_that_fails_anywhere_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reset(path)
    failed = set()
    for call in range(1, 1000):
        faults = Faults(monkeypatch, call=call, error=errno.EIO)
        try:
            with faults.armed():
                data = loaded(path)
        except RuntimeError as error:
            assert f"Can't load the runtime cache '{path}': " in str(error)
            assert os.strerror(errno.EIO) in str(error)
        else:
            assert data == b"theirs,"
        if not faults.failed:
            break
        failed.add(faults.failed)
    assert failed == {"stat", "open", "flock", "fstat", "lstat", "preadv"}


def test_reads_and_writes_that_stop_short_are_continued(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reset(path)
    faults = Faults(monkeypatch, most_bytes=2)
    assert save_with(faults, path) == ""
    assert path.read_bytes() == b"theirs,ours"
    with faults.armed():
        assert loaded(path) == b"theirs,ours"


def test_a_directory_that_can_not_be_synced_by_nature_is_no_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reset(path)
    faults = Faults(monkeypatch, call=2, error=errno.EINVAL, only="fsync")
    assert save_with(faults, path) == ""
    assert faults.failed == "fsync"


@pytest.mark.parametrize("error", [errno.EBUSY, errno.EPERM, errno.EACCES])
def test_where_a_rename_is_impossible_the_file_is_written_in_place(
    path: Path, monkeypatch: pytest.MonkeyPatch, log: Log, error: int
) -> None:
    reset(path)
    before = path.stat()
    assert save_with(Faults(monkeypatch, always={"rename": error}), path) == ""
    assert path.read_bytes() == b"theirs,ours"
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns > before.st_mtime_ns
    assert names_in(path.parent) == {"cache.bin", "cache.bin.lock"}
    (warning,) = log.warnings()
    assert "is written in place" in warning and os.strerror(error) in warning


def test_a_write_in_place_that_finds_no_space_leaves_the_old_contents(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reset(path)
    # The first write goes to the temporary file, the second puts the longer end behind the old
    # contents.
    faults = Faults(
        monkeypatch,
        call=2,
        error=errno.ENOSPC,
        only="pwrite",
        always={"rename": errno.EBUSY},
    )
    message = save_with(faults, path)
    assert f"write '{path}': {os.strerror(errno.ENOSPC)}" in message
    assert path.read_bytes() == b"theirs,"


@pytest.mark.skipif(
    tuple(map(int, filelock.__version__.split(".")[:2])) < (4, 2),
    reason="filelock before 4.2 fails first: it truncates its lock file",
)
def test_contents_that_can_not_be_restored_are_an_error_in_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    reset(path)
    faults = Faults(
        monkeypatch,
        call=2,
        error=errno.ENOSPC,
        only="pwrite",
        always={"rename": errno.EBUSY, "ftruncate": errno.EIO},
    )
    assert os.strerror(errno.ENOSPC) in save_with(faults, path)
    assert f"ERROR: Can't cut '{path}' back to 7 bytes: it is damaged" in log.lines()


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
@pytest.mark.filterwarnings("ignore:flock not supported")  # filelock's
def test_a_file_system_without_flock_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    path.write_bytes(b"theirs,")
    faults = Faults(monkeypatch, always={"flock": error})
    message = save_with(faults, path)
    assert message.startswith(
        f"Can't save the runtime cache '{path}': Can't lock lock file '{path}.lock': "
    )
    assert message.endswith("(its file system may have no flock)")
    with faults.armed(), pytest.raises(RuntimeError, match="may have no flock"):
        loaded(path)
    assert path.read_bytes() == b"theirs,"
