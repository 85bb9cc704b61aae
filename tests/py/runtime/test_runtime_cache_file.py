"""The store, in both languages."""

from __future__ import annotations

import fcntl
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.py.runtime.runtime_cache_testing import Log, names_in
from tests.py.runtime.stores import Store, write
from torch_tensorrt.logging import info
from torchtrt_cache.runtime_cache_file import (
    Turn,
    accept_offer,
    read_offer,
)

OPERATIONS: dict[str, Callable[[Store], Any]] = {
    "load": lambda store: store.read(),
    "save": lambda store: store.replace(b"ours"),
}


@pytest.fixture
def store(runtime: str, path: Path) -> Store:
    return Store(runtime, path)


def error_of(operation: str, store: Store) -> str:
    with pytest.raises(RuntimeError) as failure:
        OPERATIONS[operation](store)
    return str(failure.value)


@contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """Holds the lock as another reader does."""
    file = os.open(f"{path}.lock", os.O_RDONLY | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)


@pytest.mark.parametrize(
    "size", [1, 4095, 4096, 65536, 65537, 262144, 262145, 20_000_001]
)
def test_a_file_of_one_language_is_the_others(
    runtime: str, other_runtime: str, path: Path, size: int
) -> None:
    data = random.Random(size).randbytes(size)
    written = Store(runtime, path).replace(data)
    assert written is not None and written.is_written
    assert path.read_bytes() == data
    other = Store(other_runtime, path)
    assert other.read() == (data, written.generation)
    assert other.replace(data) == (written.generation, False, "")
    assert names_in(path.parent) == {"cache.bin", "cache.bin.lock"}


def test_a_missing_file_is_no_error_and_creates_nothing(
    runtime: str, path: Path, log: Log
) -> None:
    with info():
        for missing in (path, path.parent / "no" / "such" / "cache.bin"):
            store = Store(runtime, missing)
            assert store.is_empty()
            assert store.read() is None
            assert log.lines() == [
                f"INFO: There is no runtime cache at '{missing}' yet"
            ]
    assert names_in(path.parent) == set()


def test_an_empty_file_is_a_missing_one(store: Store, path: Path) -> None:
    path.touch()
    assert store.is_empty()
    assert store.read() is None
    assert names_in(path.parent) == {"cache.bin"}
    assert store.replace(b"ours") is not None
    assert not store.is_empty()
    assert path.read_bytes() == b"ours"


def test_writes_over_the_expected_generation_alone(
    store: Store, runtime: str, other_runtime: str, path: Path
) -> None:
    first = write(store, b"first").generation
    for expected in (None, first._replace(mtime_ns=first.mtime_ns - 1)):
        assert store.replace(b"ours", expected) is None
        assert path.read_bytes() == b"first"
    second = Store(other_runtime, path).replace(b"second", first)
    assert second is not None
    assert store.read() == (b"second", second.generation)
    assert store.replace(b"ours", first) is None
    assert path.read_bytes() == b"second"
    assert store.replace(b"ours", second.generation) is not None
    assert path.read_bytes() == b"ours"


@pytest.mark.parametrize("is_emptied", [False, True])
def test_a_file_that_is_gone_is_written_anew(
    store: Store, path: Path, is_emptied: bool
) -> None:
    old = write(store, b"old").generation
    path.unlink()
    if is_emptied:
        path.touch()
    assert store.replace(b"ours", old) is not None
    assert path.read_bytes() == b"ours"


def test_bytes_that_are_there_are_left_alone_whatever_is_expected(
    store: Store, path: Path, log: Log
) -> None:
    there = write(store, b"kernels").generation
    log.lines()
    with info():
        for expected in (None, there, there._replace(inode=0)):
            assert store.replace(b"kernels", expected) == (there, False, "")
            assert log.lines() == [
                f"INFO: The runtime cache '{path}' has these 7 bytes already"
            ]
    status = path.stat()
    assert (status.st_ino, status.st_mtime_ns) == (there.inode, there.mtime_ns)


def test_one_byte_is_difference_enough(store: Store, path: Path) -> None:
    data = bytearray(600_000)
    write(store, bytes(data))
    for at in (0, 65_535, 65_536, 262_143, 262_144, 400_000, 524_288, 599_999):
        data[at] = 1
        write(store, bytes(data))
        assert path.read_bytes() == data, at


def test_a_read_and_a_write_are_told(store: Store, path: Path, log: Log) -> None:
    with info():
        store.replace(b"kernels")
        store.read()
    assert log.lines() == [
        f"INFO: Saved 7 bytes to the runtime cache '{path}'",
        f"INFO: Loaded 7 bytes from the runtime cache '{path}'",
    ]


def test_no_two_generations_look_alike(
    runtime: str, other_runtime: str, path: Path
) -> None:
    """The generations have one size, the same tick of the clock, and perhaps the same inode."""
    ours, other = Store(runtime, path), Store(other_runtime, path)
    generations = {write(ours, b"0").generation}
    for i in range(1, 100):
        generations.add(write(other if i % 2 else ours, b"%d" % (i % 10)).generation)
    assert len(generations) == 100


def test_a_new_generation_is_later_though_the_clock_was_set_back(
    store: Store, path: Path
) -> None:
    path.write_bytes(b"1")
    future = time.time_ns() + 86_400 * 10**9
    os.utime(path, ns=(future, future))
    write(store, b"2")
    assert path.stat().st_mtime_ns > future


def test_refuses_anything_but_a_regular_file_and_creates_no_lock(
    runtime: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"theirs")
    before = names_in(tmp_path)
    reasons = {
        f"{folder}": "'{path}' is not a regular file",
        f"{folder}/": "'{path}' is not a regular file",
        f"{tmp_path}/fifo": "'{path}' is not a regular file",
        f"{tmp_path}/link": "'{path}' is not a regular file",
        f"{tmp_path}/loop": "stat '{path}': Too many levels of symbolic links",
        f"{tmp_path}/file/cache.bin": "stat '{path}': Not a directory",
        "/dev/null": "'{path}' is not a regular file",
    }
    for path, reason in reasons.items():
        for operation in OPERATIONS:
            expected = f"Can't {operation} the runtime cache '{path}': {reason}"
            error = error_of(operation, Store(runtime, path))
            assert error.endswith(expected.format(path=path))
    assert Store(runtime, tmp_path / "file" / "cache.bin").is_empty()
    assert names_in(tmp_path) == before
    assert names_in(folder) == set()


def test_refuses_impossible_paths(runtime: str) -> None:
    with pytest.raises(RuntimeError, match="The path of a runtime cache is empty"):
        Store(runtime, "")
    with pytest.raises(RuntimeError, match="has a NUL in it, after 'a'"):
        Store(runtime, "a\0b")


def test_a_vanished_directory_is_an_error_of_a_write(
    runtime: str, tmp_path: Path
) -> None:
    path = tmp_path / "gone" / "cache.bin"
    assert error_of("save", Store(runtime, path)).endswith(
        f"Can't save the runtime cache '{path}': Can't open lock file '{path}.lock': "
        "No such file or directory"
    )
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_lock_file_that_is_a_link_or_a_folder_is_refused(
    store: Store, path: Path, operation: str
) -> None:
    path.write_bytes(b"theirs")
    lock = Path(f"{path}.lock")
    lock.symlink_to("elsewhere")
    error = error_of(operation, store)
    assert f"'{lock}'" in error and "a symbolic link is refused here" in error
    lock.unlink()
    lock.mkdir()
    assert f"'{lock}'" in error_of(operation, store)
    assert path.read_bytes() == b"theirs"
    assert names_in(path.parent) == {"cache.bin", "cache.bin.lock"}


@pytest.mark.parametrize(("mask", "mode"), [(0o027, 0o640), (0, 0o664)])
def test_a_first_file_may_not_be_written_by_everybody(
    store: Store, path: Path, mask: int, mode: int
) -> None:
    before = os.umask(mask)
    try:
        write(store, b"ours")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == mode
    contents = store.read()
    assert contents is not None and contents[0] == b"ours"


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o606, 0o640])
@pytest.mark.parametrize("contents", [b"", b"theirs"])
def test_keeps_the_mode_of_the_file_that_is_there(
    store: Store,
    path: Path,
    mode: int,
    contents: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHTRT_TRUSTED_PATHS", str(path))
    path.write_bytes(contents)
    path.chmod(mode)
    before = path.stat().st_ino
    write(store, b"ours")
    assert path.stat().st_ino != before
    assert path.stat().st_mode & 0o7777 == mode


def test_keeps_owner_and_group_where_it_may(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHTRT_TRUSTED_PATHS", str(path))
    path.write_bytes(b"theirs")
    try:
        os.chown(path, 4711, 4712)
    except OSError as error:
        pytest.skip(f"this user may not give files away here: {error}")
    write(store, b"ours")
    assert (path.stat().st_uid, path.stat().st_gid) == (4711, 4712)


def test_follows_symbolic_links_to_the_file_that_it_replaces(
    store: Store, path: Path
) -> None:
    real = path.parent / "real" / "kernels"
    real.parent.mkdir()
    absolute = path.with_name("absolute")
    absolute.symlink_to(real)
    path.symlink_to("absolute")  # relative, and dangling so far
    assert store.read() is None
    for data in (b"first", b"second"):
        written = write(store, data)
        assert real.read_bytes() == data
        assert store.read() == (data, written.generation)
    assert path.is_symlink() and absolute.is_symlink()
    assert names_in(path.parent) == {
        "absolute",
        "cache.bin",
        "cache.bin.lock",
        "real",
    }
    assert names_in(real.parent) == {"kernels"}


def test_sweeps_the_temporary_files_of_dead_writers_alone(
    store: Store, path: Path, log: Log
) -> None:
    stale = Path(f"{path}.1-0123456789abcdef.tmp")
    held = Path(f"{path}.1-fedcba9876543210.tmp")
    others = [
        Path(f"{path}{tail}")
        for tail in (
            ".1-0123456789abcde.tmp",
            ".1-0123456789abcdef.tmp2",
            ".-0123456789abcdef.tmp",
            "..1-0123456789abcdef.tmp",
            ".x.1-0123456789abcdef.tmp",
            ".1-0123456789ABCDEF.tmp",
            ".tmp",
        )
    ]
    for file in (stale, held, *others):
        file.write_bytes(b"torn")
    with held.open("wb") as writer, info():
        fcntl.flock(writer, fcntl.LOCK_EX)
        write(store, b"1")
        assert f"INFO: Removed '{stale}', left by a writer that died" in log.lines()
        assert not stale.exists()
        assert held.exists()
    write(store, b"2")
    assert not held.exists()
    for file in others:
        assert file.exists(), file


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_held_lock_is_an_error_after_the_timeout(
    runtime: str, path: Path, operation: str
) -> None:
    path.write_bytes(b"theirs")
    with FileLock(f"{path}.lock"):
        assert error_of(operation, Store(runtime, path, 0.02)).endswith(
            f"Can't {operation} the runtime cache '{path}': another holder kept the lock "
            f"'{path}.lock' for 20 ms"
        )
    assert path.read_bytes() == b"theirs"


def test_readers_go_together(store: Store, path: Path) -> None:
    path.write_bytes(b"theirs")
    with shared_lock(path):
        contents = store.read()
    assert contents is not None and contents[0] == b"theirs"


@pytest.mark.parametrize(
    ("operation", "holds"),
    [("load", FileLock), ("save", FileLock), ("save", shared_lock)],
)
def test_waits_for_who_holds_the_lock(
    store: Store, path: Path, operation: str, holds: Any
) -> None:
    path.touch() if operation == "save" else path.write_bytes(b"theirs")
    results: list[Any] = []
    waiting = threading.Thread(
        target=lambda: results.append(OPERATIONS[operation](store))
    )
    with holds(f"{path}.lock") if holds is FileLock else holds(path):
        waiting.start()
        waiting.join(timeout=0.2)
        assert results == []
    waiting.join()
    (result,) = results
    assert result is not None
    assert path.read_bytes() == (b"theirs" if operation == "load" else b"ours")


def test_a_turn_comes_when_the_one_before_has_ended(
    runtime: str, other_runtime: str, path: Path
) -> None:
    events: list[str] = []

    def take_turn() -> None:
        with Store(other_runtime, path).wait_for_turn():
            events.append("second")

    waiting = threading.Thread(target=take_turn)
    store = Store(runtime, path)
    with store.wait_for_turn():
        waiting.start()
        waiting.join(timeout=0.2)
        # The turn is not the lock of the file, which others may use.
        write(Store(other_runtime, path), b"theirs")
        events.append("first")
    waiting.join()
    assert events == ["first", "second"]
    assert names_in(path.parent) == {
        "cache.bin",
        "cache.bin.lock",
        "cache.bin.merge.lock",
    }


def test_a_turn_that_does_not_come_is_taken(runtime: str, path: Path, log: Log) -> None:
    lock = Path(f"{path}.merge.lock")
    merging = "INFO: Merging without waiting for others: "
    with info():
        with FileLock(lock), Store(runtime, path, 0.02).wait_for_turn():
            assert log.lines() == [
                f"{merging}another holder kept the lock '{lock}' for 20 ms"
            ]
        lock.unlink()
        lock.symlink_to("elsewhere")
        with Store(runtime, path).wait_for_turn():
            (line,) = log.lines()
    assert line.startswith(f"{merging}Can't open lock file '{lock}': ")
    assert names_in(path.parent) == {lock.name}


def test_an_offer_waits_for_whoever_has_the_turn(
    runtime: str, other_runtime: str, path: Path
) -> None:
    turns: dict[bytes, Turn] = {}

    def wait(runtime: str, data: bytes) -> None:
        with Store(runtime, path).wait_for_turn(data) as turn:
            turns[data] = turn
            for offer in turn.offers:
                accept_offer(offer)

    waiting = [
        threading.Thread(target=wait, args=arguments)
        for arguments in [(runtime, b"ours"), (other_runtime, b"theirs")]
    ]
    with FileLock(f"{path}.merge.lock"):
        for thread in waiting:
            thread.start()
        while len(offers := sorted(path.parent.glob("*.merge"))) < 2:
            time.sleep(0.01)
        offered = [read_offer(str(offer)) for offer in offers]
        assert sorted(bytes(data or b"") for data in offered) == [b"ours", b"theirs"]
    for thread in waiting:
        thread.join()
    assert sorted(turn.is_saved for turn in turns.values()) == [False, True]
    assert sorted(len(turn.offers) for turn in turns.values()) == [0, 1]
    assert names_in(path.parent) == {"cache.bin.merge.lock"}


def test_threads_that_share_a_store_see_whole_files(store: Store) -> None:
    size = 300_000
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            contents = store.read()
            if contents is not None:
                seen.add(bytes(set(contents[0])))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    expected = None
    for value in range(1, 21):
        written = store.replace(bytes([value]) * size, expected)
        assert written is not None
        expected = written.generation
    done.set()
    for reader in readers:
        reader.join()
    assert {len(values) for values in seen} == {1}
