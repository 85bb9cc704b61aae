"""The contract of the cache file, over the handles of both runtimes."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tests.py.runtime.runtime_cache_testing import (
    KINDS,
    Log,
    MakeHandle,
    handle_of,
    names_in,
    to_bytes,
    to_tensor,
)
from torch_tensorrt.logging import info


@pytest.fixture(params=KINDS)
def other_kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def save(make_handle: MakeHandle, path: Path, data: bytes) -> int:
    """Saves `data` over whatever is there."""
    handle = make_handle(path)
    handle.load()
    handle.deserialize(to_tensor(data))
    written: int = handle.save()
    return written


def error_of(make_handle: MakeHandle, path: Path | str, operation: str) -> str:
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"ours"))
    with pytest.raises(RuntimeError) as failure:
        getattr(handle, operation)()
    return str(failure.value)


@contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """As another reader holds it."""
    file = os.open(f"{path}.lock", os.O_RDONLY | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)


@pytest.mark.parametrize("size", [1, 4095, 4096, 262144, 262145, 20_000_001])
def test_a_file_of_one_runtime_is_the_others(
    kind: str, other_kind: str, path: Path, size: int
) -> None:
    data = torch.randint(256, [size], dtype=torch.uint8)
    writer, reader = handle_of(kind, path), handle_of(other_kind, path)
    writer.deserialize(data)
    assert writer.save() == size
    assert path.stat().st_size == size
    assert reader.load() == size
    assert torch.equal(reader.serialize(), data)
    assert reader.save() == 0
    assert names_in(path.parent) == {"cache.bin", "cache.bin.lock"}


def test_a_missing_file_is_no_error_and_creates_nothing(
    make_handle: MakeHandle, path: Path, log: Log
) -> None:
    with info():
        for missing in (path, path.parent / "no" / "such" / "cache.bin"):
            assert make_handle(missing).load() == 0
            assert log.lines() == [
                f"INFO: There is no runtime cache at '{missing}' yet"
            ]
    assert names_in(path.parent) == set()


def test_an_empty_file_is_a_missing_one(make_handle: MakeHandle, path: Path) -> None:
    path.touch()
    handle = make_handle(path)
    assert handle.load() == 0
    assert not handle.has_cache()
    assert names_in(path.parent) == {"cache.bin"}
    handle.deserialize(to_tensor(b"ours"))
    assert handle.save() == 4
    assert path.read_bytes() == b"ours"


def test_saving_the_same_bytes_touches_nothing(
    make_handle: MakeHandle, path: Path, log: Log
) -> None:
    path.write_bytes(b"kernels")
    before = path.stat()
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    with info():
        assert handle.save() == 0
    assert log.lines() == [
        f"INFO: The runtime cache '{path}' has these 7 bytes already"
    ]
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
    )


def test_one_byte_is_difference_enough(make_handle: MakeHandle, path: Path) -> None:
    data = bytearray(600_000)
    save(make_handle, path, bytes(data))
    for at in (0, 65_535, 65_536, 262_143, 262_144, 400_000, 524_288, 599_999):
        data[at] = 1
        assert save(make_handle, path, bytes(data)) == len(data), at
        assert path.read_bytes() == data, at


def test_a_load_and_a_save_are_told(
    make_handle: MakeHandle, path: Path, log: Log
) -> None:
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    with info():
        handle.save()
        handle.load()
    assert log.lines() == [
        f"INFO: Saved 7 bytes to the runtime cache '{path}'",
        f"INFO: Loaded 7 bytes from the runtime cache '{path}'",
    ]


def test_a_file_that_is_gone_is_written_anew(
    make_handle: MakeHandle, path: Path
) -> None:
    path.write_bytes(b"kernels")
    handle = make_handle(path)
    handle.load()
    path.unlink()
    assert handle.save() == 7
    assert path.read_bytes() == b"kernels"


def test_no_two_generations_look_alike(kind: str, other_kind: str, path: Path) -> None:
    """Of one size, in the same tick of the clock, and perhaps on the same inode."""
    for _ in range(50):
        path.unlink(missing_ok=True)
        handle = handle_of(kind, path)
        save_as_other = partial(save, partial(handle_of, other_kind), path)
        save_as_other(b"1")
        handle.load()
        save_as_other(b"2")
        save_as_other(b"3")
        assert handle.save() == 0
        assert path.read_bytes() == b"3"


def test_a_new_generation_is_later_though_the_clock_was_set_back(
    make_handle: MakeHandle, path: Path
) -> None:
    path.write_bytes(b"1")
    future = time.time_ns() + 86_400 * 10**9
    os.utime(path, ns=(future, future))
    save(make_handle, path, b"2")
    assert path.stat().st_mtime_ns > future


def test_refuses_anything_but_a_regular_file_and_creates_no_lock(
    make_handle: MakeHandle, tmp_path: Path
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
        for operation in ("load", "save"):
            expected = f"Can't {operation} the runtime cache '{path}': {reason}"
            error = error_of(make_handle, path, operation)
            assert expected.format(path=path) in error
    assert names_in(tmp_path) == before
    assert names_in(folder) == set()


def test_a_vanished_directory_is_an_error_of_save(
    make_handle: MakeHandle, tmp_path: Path
) -> None:
    path = tmp_path / "gone" / "cache.bin"
    error = error_of(make_handle, path, "save")
    assert f"Can't save the runtime cache '{path}': " in error
    assert f"lock file '{path}.lock': No such file or directory" in error
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("operation", ["load", "save"])
def test_a_lock_file_that_is_a_link_or_a_folder_is_refused(
    make_handle: MakeHandle, path: Path, operation: str
) -> None:
    path.write_bytes(b"theirs")
    lock = Path(f"{path}.lock")
    lock.symlink_to("elsewhere")
    error = error_of(make_handle, path, operation)
    assert f"'{lock}'" in error and "a symbolic link is refused here" in error
    lock.unlink()
    lock.mkdir()
    assert f"'{lock}'" in error_of(make_handle, path, operation)
    assert path.read_bytes() == b"theirs"
    assert names_in(path.parent) == {"cache.bin", "cache.bin.lock"}


def test_a_first_file_has_the_mode_of_any_other(
    make_handle: MakeHandle, path: Path
) -> None:
    mask = os.umask(0o027)
    try:
        save(make_handle, path, b"ours")
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o7777 == 0o640


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o606, 0o640])
def test_keeps_the_mode_of_the_file_that_is_there(
    make_handle: MakeHandle, path: Path, mode: int
) -> None:
    path.write_bytes(b"theirs")
    path.chmod(mode)
    before = path.stat().st_ino
    save(make_handle, path, b"ours")
    assert path.stat().st_ino != before
    assert path.stat().st_mode & 0o7777 == mode


def test_keeps_owner_and_group_where_it_may(
    make_handle: MakeHandle, path: Path
) -> None:
    path.write_bytes(b"theirs")
    try:
        os.chown(path, 4711, 4712)
    except OSError as error:
        pytest.skip(f"this user may not give files away here: {error}")
    save(make_handle, path, b"ours")
    assert (path.stat().st_uid, path.stat().st_gid) == (4711, 4712)


def test_follows_symbolic_links_to_the_file_that_it_replaces(
    make_handle: MakeHandle, path: Path
) -> None:
    real = path.parent / "real" / "kernels"
    real.parent.mkdir()
    absolute = path.with_name("absolute")
    absolute.symlink_to(real)
    path.symlink_to("absolute")  # relative, and dangling so far
    handle = make_handle(path)
    assert handle.load() == 0
    for data in (b"first", b"second"):
        handle.deserialize(to_tensor(data))
        assert handle.save() == len(data)
        assert real.read_bytes() == data
    assert make_handle(path).load() == 6
    assert path.is_symlink() and absolute.is_symlink()
    assert names_in(path.parent) == {
        "absolute",
        "cache.bin",
        "cache.bin.lock",
        "real",
    }
    assert names_in(real.parent) == {"kernels"}


def test_sweeps_the_temporary_files_of_dead_writers_alone(
    make_handle: MakeHandle, path: Path, log: Log
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
        save(make_handle, path, b"ours")
        assert f"INFO: Removed '{stale}', left by a writer that died" in log.lines()
        assert not stale.exists()
        assert held.exists()
    save(make_handle, path, b"ours")
    assert not held.exists()
    for file in others:
        assert file.exists(), file


def test_loads_together_with_other_readers(make_handle: MakeHandle, path: Path) -> None:
    path.write_bytes(b"theirs")
    with shared_lock(path):
        assert make_handle(path).load() == 6


@pytest.mark.parametrize("operation", ["load", "save"])
def test_waits_for_who_holds_the_lock(
    make_handle: MakeHandle, path: Path, operation: str
) -> None:
    path.write_bytes(b"theirs")
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    results: list[int] = []
    waiting = threading.Thread(
        target=lambda: results.append(getattr(handle, operation)())
    )
    with FileLock(f"{path}.lock"):
        waiting.start()
        waiting.join(timeout=0.2)
        assert results == []
        assert path.read_bytes() == b"theirs"
    waiting.join()
    assert results == [6 if operation == "load" else 7]


def test_a_reader_makes_a_save_wait(make_handle: MakeHandle, path: Path) -> None:
    path.write_bytes(b"theirs")
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    saving = threading.Thread(target=handle.save)
    with shared_lock(path):
        saving.start()
        saving.join(timeout=0.2)
        assert path.read_bytes() == b"theirs"
    saving.join()
    assert path.read_bytes() == b"kernels"


@pytest.mark.parametrize("loss", ["unlinked", "renamed"])
def test_a_lock_file_that_lost_its_name_guards_nothing(
    make_handle: MakeHandle, path: Path, loss: str
) -> None:
    lock_path = Path(f"{path}.lock")
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    saving = threading.Thread(target=handle.save)
    nameless = FileLock(lock_path)
    with nameless:
        saving.start()
        saving.join(timeout=0.1)
        if loss == "renamed":
            os.link(lock_path, f"{lock_path}.old")
        # Locked before it gets the name, so that the save can't be the first to lock it.
        with Path(f"{lock_path}.new").open("w") as named:
            fcntl.flock(named, fcntl.LOCK_EX)
            Path(named.name).replace(lock_path)
            nameless.release()
            saving.join(timeout=0.2)
            assert not path.exists()
    saving.join()
    assert path.read_bytes() == b"kernels"


def test_threads_with_their_own_handles_see_whole_files(
    make_handle: MakeHandle, path: Path
) -> None:
    size = 300_000
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            handle = make_handle(path)
            if handle.load() > 0:
                seen.add(to_bytes(torch.unique(handle.serialize())))

    def read_without_the_lock() -> None:
        while not done.is_set():
            with suppress(FileNotFoundError):
                seen.add(bytes(set(path.read_bytes())))

    readers = [threading.Thread(target=read) for _ in range(2)]
    readers.append(threading.Thread(target=read_without_the_lock))
    for reader in readers:
        reader.start()
    for value in range(1, 21):
        save(make_handle, path, bytes([value]) * size)
    done.set()
    for reader in readers:
        reader.join()
    assert {len(values) for values in seen} == {1}
