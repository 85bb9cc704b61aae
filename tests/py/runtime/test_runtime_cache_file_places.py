"""Directories and mounts where a cache can't be locked, replaced or written as usual.

Over both runtimes, in children in which permissions, mounts and limits count.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.py.runtime.runtime_cache_testing import (
    handle_of,
    names_in,
    to_bytes,
    to_tensor,
)
from tests.py.runtime.unprivileged import (
    MS_BIND,
    MS_RDONLY,
    MS_REMOUNT,
    Child,
    enter_mount_namespace,
    give_up_capabilities,
    mount,
    stderr_of,
)
from torch_tensorrt.logging import info

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def unprivileged() -> Iterator[Run]:
    """Runs a function in a process to which permissions apply."""
    child = Child(give_up_capabilities)
    yield child
    child.close()


@pytest.fixture(scope="module")
def mount_child() -> Iterator[Child]:
    child = Child(enter_mount_namespace)
    yield child
    child.close()


@pytest.fixture
def mounting(mount_child: Child) -> Run:
    """Runs a function in a process that may mount."""
    try:
        mount_child(os.getpid)
    except OSError as error:
        pytest.skip(f"no mount namespace can be made here: {error}")
    return mount_child


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "folder"
    folder.mkdir()
    yield folder
    folder.chmod(0o755)


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "cache.bin"


def loaded(kind: str, path: Path) -> bytes:
    handle = handle_of(kind, path)
    handle.load()
    return to_bytes(handle.serialize())


def save(kind: str, path: Path, data: bytes) -> int:
    handle = handle_of(kind, path)
    handle.deserialize(to_tensor(data))
    written: int = handle.save()
    return written


def error_of_load(kind: str, path: Path) -> str:
    with pytest.raises(RuntimeError) as failure:
        loaded(kind, path)
    return str(failure.value)


def error_of_save(kind: str, path: Path) -> str:
    with pytest.raises(RuntimeError) as failure:
        save(kind, path, b"ours")
    return str(failure.value)


def log_of_load(kind: str, path: Path, log: Path) -> list[str]:
    with info():
        return stderr_of(lambda: loaded(kind, path), log)


def test_a_read_only_directory_loads_without_a_lock(
    unprivileged: Run, kind: str, folder: Path, path: Path
) -> None:
    path.write_bytes(b"baked in")
    folder.chmod(0o555)
    assert unprivileged(loaded, kind, path) == b"baked in"
    assert unprivileged(log_of_load, kind, path, folder.parent / "log") == [
        f"INFO: [Torch-TensorRT] - Reading the runtime cache '{path}' without a lock: its "
        "directory is read-only",
        f"INFO: [Torch-TensorRT] - Loaded 8 bytes from the runtime cache '{path}'",
    ]
    error = unprivileged(error_of_save, kind, path)
    assert f"Can't save the runtime cache '{path}': Can't open lock file" in error
    assert "Permission denied" in error
    assert names_in(folder) == {"cache.bin"}


def test_a_lock_file_closed_to_us_is_an_error(
    unprivileged: Run, kind: str, folder: Path, path: Path
) -> None:
    """Somebody else may hold a lock that we can't see: this is no read-only directory."""
    path.write_bytes(b"theirs")
    lock = Path(f"{path}.lock")
    lock.touch(0)
    folder.chmod(0o555)
    for function in (error_of_load, error_of_save):
        error = unprivileged(function, kind, path)
        assert f"Can't open lock file '{lock}': Permission denied" in error


def test_a_lock_file_that_may_only_be_read_is_locked(
    unprivileged: Run, kind: str, path: Path
) -> None:
    path.write_bytes(b"theirs")
    Path(f"{path}.lock").touch(0o444)
    assert unprivileged(loaded, kind, path) == b"theirs"
    assert unprivileged(save, kind, path, b"ours") == 4
    assert path.read_bytes() == b"ours"


def test_a_file_or_directory_that_may_not_be_read_is_an_error(
    unprivileged: Run, kind: str, folder: Path, path: Path
) -> None:
    path.write_bytes(b"theirs")
    path.chmod(0)
    for operation, function in (("load", error_of_load), ("save", error_of_save)):
        assert (
            f"Can't {operation} the runtime cache '{path}': open '{path}': Permission denied"
            in unprivileged(function, kind, path)
        )
    folder.chmod(0)
    for function in (error_of_load, error_of_save):
        assert f"stat '{path}': Permission denied" in unprivileged(function, kind, path)


def test_a_directory_that_may_not_be_listed_is_saved_to(
    unprivileged: Run, kind: str, folder: Path, path: Path
) -> None:
    folder.chmod(0o333)
    assert unprivileged(save, kind, path, b"ours") == 4
    assert path.read_bytes() == b"ours"


def save_longer_and_shorter(kind: str, path: Path) -> list[bytes]:
    handle = handle_of(kind, path)
    contents = []
    for data in (b"longer than before", b"short"):
        handle.load()
        handle.deserialize(to_tensor(data))
        assert handle.save() == len(data)
        contents.append(path.read_bytes())
    return contents


def log_of_saves_in_place(kind: str, path: Path, log: Path) -> list[str]:
    contents: list[bytes] = []
    lines = stderr_of(lambda: contents.extend(save_longer_and_shorter(kind, path)), log)
    assert contents == [b"longer than before", b"short"]
    return lines


def test_an_open_file_in_a_closed_directory_is_written_in_place_with_one_warning(
    unprivileged: Run, kind: str, folder: Path, path: Path
) -> None:
    path.write_bytes(b"theirs")
    Path(f"{path}.lock").touch()
    folder.chmod(0o555)
    inode = path.stat().st_ino
    (line,) = unprivileged(log_of_saves_in_place, kind, path, folder.parent / "log")
    assert line.startswith(
        f"WARNING: [Torch-TensorRT] - The runtime cache '{path}' is written in place, so a crash "
        f"meanwhile can tear it, because it can't be replaced: create '{path}."
    )
    assert line.endswith(".tmp': Permission denied")
    assert path.stat().st_ino == inode
    assert names_in(folder) == {"cache.bin", "cache.bin.lock"}


def test_a_closed_file_in_a_closed_directory_is_an_error(
    unprivileged: Run, kind: str, folder: Path, path: Path
) -> None:
    path.write_bytes(b"theirs")
    path.chmod(0o444)
    Path(f"{path}.lock").touch()
    folder.chmod(0o555)
    assert "Permission denied" in unprivileged(error_of_save, kind, path)
    assert path.read_bytes() == b"theirs"


def error_of_save_at_limit(kind: str, path: Path, limit: int) -> str:
    handle = handle_of(kind, path)
    handle.load()
    handle.deserialize(torch.ones(2 * limit, dtype=torch.uint8))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python has told the system to fail such a write rather than to kill.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(RuntimeError) as failure:
            handle.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return str(failure.value)


def test_a_file_too_large_for_its_limit_leaves_the_old_one(
    unprivileged: Run, kind: str, folder: Path, path: Path
) -> None:
    path.write_bytes(b"theirs")
    error = unprivileged(error_of_save_at_limit, kind, path, 65536)
    assert f"Can't save the runtime cache '{path}': write '{path}." in error
    assert "File too large" in error
    assert path.read_bytes() == b"theirs"
    assert names_in(folder) == {"cache.bin", "cache.bin.lock"}


def use_read_only_mount(kind: str, folder: Path) -> None:
    mount(str(folder), folder, "none", MS_BIND)
    mount("none", folder, "none", MS_BIND | MS_REMOUNT | MS_RDONLY)
    for name in ("cache.bin", "locked.bin"):
        assert loaded(kind, folder / name) == b"baked in"
        assert "Read-only file system" in error_of_save(kind, folder / name)


def test_a_read_only_mount_loads_with_and_without_a_lock_file(
    mounting: Run, kind: str, folder: Path
) -> None:
    for name in ("cache.bin", "locked.bin"):
        (folder / name).write_bytes(b"baked in")
    (folder / "locked.bin.lock").touch()
    mounting(use_read_only_mount, kind, folder)


def use_file_mounted_by_itself(kind: str, source: Path, path: Path, log: Path) -> None:
    mount(str(source), path, "none", MS_BIND)
    (line,) = log_of_saves_in_place(kind, path, log)
    assert "is written in place" in line
    assert line.endswith(f".tmp' to '{path}': Device or resource busy")
    assert names_in(path.parent) == {"cache.bin", "cache.bin.lock"}


def test_a_file_mounted_by_itself_is_written_in_place(
    mounting: Run, kind: str, folder: Path, path: Path
) -> None:
    source = folder.parent / "source"
    source.write_bytes(b"theirs")
    path.touch()
    mounting(use_file_mounted_by_itself, kind, source, path, folder.parent / "log")
    assert source.read_bytes() == b"short"
    assert path.read_bytes() == b""


def use_full_disk(kind: str, path: Path) -> None:
    mount("none", path.parent, "tmpfs", 0, "size=1m")
    save(kind, path, b"theirs")
    handle = handle_of(kind, path)
    handle.load()
    handle.deserialize(torch.ones(2 << 20, dtype=torch.uint8))
    with pytest.raises(RuntimeError) as failure:
        handle.save()
    assert f"Can't save the runtime cache '{path}': write '{path}." in str(
        failure.value
    )
    assert "No space left on device" in str(failure.value)
    assert path.read_bytes() == b"theirs"
    assert names_in(path.parent) == {"cache.bin", "cache.bin.lock"}
    handle.deserialize(to_tensor(b"ours"))
    assert handle.save() == 4, "the space is not free again"


def test_a_full_disk_leaves_the_old_file(mounting: Run, kind: str, path: Path) -> None:
    mounting(use_full_disk, kind, path)


def use_full_disk_in_place(kind: str, path: Path) -> None:
    mount("none", path.parent, "tmpfs", 0, "size=1m")
    source = path.with_name("source")
    source.write_bytes(b"theirs")
    path.touch()
    mount(str(source), path, "none", MS_BIND)
    path.with_name("filler").write_bytes(bytes(400 << 10))
    handle = handle_of(kind, path)
    # The temporary file fits, but is in the way of the bytes in place.
    for size, fits in ((500 << 10, True), (700 << 10, False)):
        handle.load()
        handle.deserialize(torch.full([size], size % 251, dtype=torch.uint8))
        if fits:
            assert handle.save() == size
        else:
            with pytest.raises(RuntimeError, match="No space left on device"):
                handle.save()
        assert path.read_bytes() == bytes([(500 << 10) % 251]) * (500 << 10)


def test_a_full_disk_leaves_a_file_that_is_written_in_place(
    mounting: Run, kind: str, path: Path
) -> None:
    mounting(use_full_disk_in_place, kind, path)
