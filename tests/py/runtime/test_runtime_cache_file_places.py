"""Directories and mounts where a cache can't be locked, replaced or written as usual.

The tests run in both languages, in child processes to which permissions, mounts and limits apply.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.py.runtime.runtime_cache_testing import names_in
from tests.py.runtime.stores import Store, write
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
from torchtrt_cache.runtime_cache_file import Replaced

Run = Callable[..., Any]
Operation = Callable[[str, Path], Any]


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
    """Runs a function in a process that may mount file systems."""
    try:
        mount_child(os.getpid)
    except OSError as error:
        pytest.skip(f"can't make a mount namespace: {error}")
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


def read(runtime: str, path: Path) -> bytes:
    contents = Store(runtime, path).read()
    assert contents is not None
    return contents[0]


def replace(runtime: str, path: Path, data: bytes = b"ours") -> Replaced:
    return write(Store(runtime, path), data)


def replace_blindly(runtime: str, path: Path) -> None:
    assert Store(runtime, path).replace(b"ours") is None


def error_of(operation: Operation, runtime: str, path: Path) -> str:
    with pytest.raises(RuntimeError) as failure:
        operation(runtime, path)
    return str(failure.value)


def log_of_load(runtime: str, path: Path, log: Path) -> list[str]:
    with info():
        return stderr_of(lambda: read(runtime, path), log)


def test_a_read_only_directory_loads_without_a_lock(
    unprivileged: Run, runtime: str, folder: Path, path: Path
) -> None:
    path.write_bytes(b"baked in")
    folder.chmod(0o555)
    assert unprivileged(read, runtime, path) == b"baked in"
    assert unprivileged(log_of_load, runtime, path, folder.parent / "log") == [
        f"INFO: [Torch-TensorRT] - Reading the runtime cache '{path}' without a lock: its "
        "directory is read-only",
        f"INFO: [Torch-TensorRT] - Loaded 8 bytes from the runtime cache '{path}'",
    ]
    error = unprivileged(error_of, replace_blindly, runtime, path)
    assert f"Can't save the runtime cache '{path}': Can't open lock file" in error
    assert "Permission denied" in error
    assert names_in(folder) == {"cache.bin"}


def test_a_lock_file_closed_to_us_is_read_without_and_not_written(
    unprivileged: Run, runtime: str, folder: Path, path: Path
) -> None:
    path.write_bytes(b"theirs")
    lock = Path(f"{path}.lock")
    lock.touch(0)
    assert unprivileged(read, runtime, path) == b"theirs"
    assert unprivileged(log_of_load, runtime, path, folder.parent / "log") == [
        f"INFO: [Torch-TensorRT] - Reading the runtime cache '{path}' without a lock: its lock "
        "file is closed to this user",
        f"INFO: [Torch-TensorRT] - Loaded 6 bytes from the runtime cache '{path}'",
    ]
    error = unprivileged(error_of, replace_blindly, runtime, path)
    assert f"Can't open lock file '{lock}': Permission denied" in error
    assert path.read_bytes() == b"theirs"
    assert names_in(folder) == {"cache.bin", "cache.bin.lock"}


def test_a_lock_file_that_may_only_be_read_is_locked(
    unprivileged: Run, runtime: str, path: Path
) -> None:
    path.write_bytes(b"theirs")
    Path(f"{path}.lock").touch(0o444)
    assert unprivileged(read, runtime, path) == b"theirs"
    unprivileged(replace, runtime, path)
    assert path.read_bytes() == b"ours"


def test_a_file_or_directory_that_may_not_be_read_is_an_error(
    unprivileged: Run, runtime: str, folder: Path, path: Path
) -> None:
    path.write_bytes(b"theirs")
    path.chmod(0)
    for name, operation in (("load", read), ("save", replace_blindly)):
        error = unprivileged(error_of, operation, runtime, path)
        assert error.endswith(
            f"Can't {name} the runtime cache '{path}': open '{path}': Permission denied"
        )
    folder.chmod(0)
    for operation in (read, replace_blindly):
        error = unprivileged(error_of, operation, runtime, path)
        assert error.endswith(f"stat '{path}': Permission denied")


def test_a_directory_that_may_not_be_listed_is_saved_to(
    unprivileged: Run, runtime: str, folder: Path, path: Path
) -> None:
    folder.chmod(0o311)
    unprivileged(replace, runtime, path)
    assert path.read_bytes() == b"ours"


def replace_by_longer_and_shorter(runtime: str, path: Path) -> str:
    """The reason why both were written in place."""
    reasons = set()
    for data in (b"longer than before", b"short"):
        reasons.add(
            re.sub(
                r"\.[0-9]+-[0-9a-f]+\.tmp", "", replace(runtime, path, data).in_place
            )
        )
        assert path.read_bytes() == data
    (reason,) = reasons
    return reason


def test_an_open_file_in_a_closed_directory_is_written_in_place(
    unprivileged: Run, runtime: str, folder: Path, path: Path
) -> None:
    path.write_bytes(b"theirs")
    Path(f"{path}.lock").touch()
    folder.chmod(0o555)
    inode = path.stat().st_ino
    reason = unprivileged(replace_by_longer_and_shorter, runtime, path)
    assert reason == f"create '{path}': Permission denied"
    assert path.stat().st_ino == inode
    assert names_in(folder) == {"cache.bin", "cache.bin.lock"}


def test_a_closed_file_in_a_closed_directory_is_an_error(
    unprivileged: Run, runtime: str, folder: Path, path: Path
) -> None:
    path.write_bytes(b"theirs")
    path.chmod(0o444)
    Path(f"{path}.lock").touch()
    folder.chmod(0o555)
    error = unprivileged(error_of, replace, runtime, path)
    assert f"Can't save the runtime cache '{path}': create '{path}." in error
    assert error.endswith("Permission denied")
    assert path.read_bytes() == b"theirs"


def replace_at_limit(runtime: str, path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ, so that such a write fails instead of killing the process.
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    try:
        replace(runtime, path, bytes(2 * 65536))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_too_large_for_its_limit_leaves_the_old_one(
    unprivileged: Run, runtime: str, folder: Path, path: Path
) -> None:
    path.write_bytes(b"theirs")
    error = unprivileged(error_of, replace_at_limit, runtime, path)
    assert f"Can't save the runtime cache '{path}': write '{path}." in error
    assert "File too large" in error
    assert path.read_bytes() == b"theirs"
    assert names_in(folder) == {"cache.bin", "cache.bin.lock"}


def read_with_256_mib(runtime: str, path: Path) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), before[1]))
    try:
        read(runtime, path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_file_too_large_for_the_memory_is_an_error(
    unprivileged: Run, runtime: str, path: Path
) -> None:
    path.touch()
    os.truncate(path, 1 << 30)
    error = unprivileged(error_of, read_with_256_mib, runtime, path)
    assert f"Can't load the runtime cache '{path}': Cannot allocate memory" in error


def use_read_only_mount(runtime: str, folder: Path) -> None:
    mount(str(folder), folder, "none", MS_BIND)
    mount("none", folder, "none", MS_BIND | MS_REMOUNT | MS_RDONLY)
    for name in ("cache.bin", "locked.bin"):
        assert read(runtime, folder / name) == b"baked in"
        assert "Read-only file system" in error_of(replace, runtime, folder / name)


def test_a_read_only_mount_loads_with_and_without_a_lock_file(
    mounting: Run, runtime: str, folder: Path
) -> None:
    for name in ("cache.bin", "locked.bin"):
        (folder / name).write_bytes(b"baked in")
    (folder / "locked.bin.lock").touch()
    mounting(use_read_only_mount, runtime, folder)


def use_file_mounted_by_itself(runtime: str, source: Path, path: Path) -> None:
    mount(str(source), path, "none", MS_BIND)
    reason = replace_by_longer_and_shorter(runtime, path)
    assert reason == f"rename to '{path}': Device or resource busy"
    assert names_in(path.parent) == {"cache.bin", "cache.bin.lock"}


def test_a_file_mounted_by_itself_is_written_in_place(
    mounting: Run, runtime: str, folder: Path, path: Path
) -> None:
    source = folder.parent / "source"
    source.write_bytes(b"theirs")
    path.touch()
    mounting(use_file_mounted_by_itself, runtime, source, path)
    assert source.read_bytes() == b"short"
    assert path.read_bytes() == b""


def use_full_disk(runtime: str, path: Path) -> None:
    mount("none", path.parent, "tmpfs", 0, "size=1m")
    replace(runtime, path, b"theirs")
    error = error_of(partial(replace, data=bytes(2 << 20)), runtime, path)
    assert f"Can't save the runtime cache '{path}': write '{path}." in error
    assert "No space left on device" in error
    assert path.read_bytes() == b"theirs"
    assert names_in(path.parent) == {"cache.bin", "cache.bin.lock"}
    replace(runtime, path)  # the space is free again


def test_a_full_disk_leaves_the_old_file(
    mounting: Run, runtime: str, path: Path
) -> None:
    mounting(use_full_disk, runtime, path)


def use_full_disk_in_place(runtime: str, path: Path) -> None:
    mount("none", path.parent, "tmpfs", 0, "size=1m")
    source = path.with_name("source")
    source.write_bytes(b"theirs")
    path.touch()
    mount(str(source), path, "none", MS_BIND)
    path.with_name("filler").write_bytes(bytes(400 << 10))
    # The temporary file fits, but leaves no space for the bytes in place.
    large = b"x" * (500 << 10)
    replace(runtime, path, large)
    error = error_of(partial(replace, data=b"y" * (700 << 10)), runtime, path)
    assert "No space left on device" in error
    assert path.read_bytes() == large


def test_a_full_disk_leaves_a_file_that_is_written_in_place(
    mounting: Run, runtime: str, path: Path
) -> None:
    mounting(use_full_disk_in_place, runtime, path)
