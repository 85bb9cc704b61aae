"""Every system call of the store fails in turn, in both languages.

LD_PRELOAD names the library of observed_calls.cpp.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.py.runtime.runtime_cache_testing import Log, names_in
from tests.py.runtime.stores import Store, write
from tests.util.processes.observed_calls import Faults, observed
from torch_tensorrt.logging import info

CALLS = {
    "fchmod",
    "fchown",
    "flock",
    "fstat",
    "fsync",
    "futimens",
    "lstat",
    "open",
    "opendir",
    "read",
    "readdir",
    "readlink",
    "rename",
    "utimensat",
    "write",
}


@pytest.fixture
def store(runtime: str, path: Path) -> Store:
    store = Store(runtime, path, 0)
    write(store, b"0")  # the first use imports modules and remembers results
    return store


def reset(path: Path) -> None:
    """Gives the file a time in the future. A write must set the new file's to a later one."""
    path.write_bytes(b"theirs")
    future = time.time_ns() + 3600 * 10**9
    os.utime(path, ns=(future, future))


def read(store: Store) -> bytes:
    contents = store.read()
    assert contents is not None
    return contents[0]


def write_with(faults: Callable[[str], int], store: Store, path: Path) -> str:
    """Replaces "theirs" by "theirs and ours". Returns the error's text, or "" if it succeeds."""
    reset(path)
    contents = store.read()
    assert contents is not None
    Path(f"{path}.lock").unlink()
    try:
        with observed(faults):
            replaced = store.replace(b"theirs and ours", contents[1])
    except RuntimeError as error:
        return str(error)
    assert replaced is not None and replaced.is_written
    return ""


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_write_that_fails_anywhere_leaves_the_old_file_and_no_litter(
    store: Store, path: Path, error: int
) -> None:
    path.rename(path.with_name("kernels"))
    path.symlink_to("kernels")
    failed = set()
    for nth in range(1, 1000):
        faults = Faults(error, nth)
        message = write_with(faults, store, path)
        if not faults.failed:
            break
        failed.add(faults.failed)
        where = f"call {nth}, of {faults.failed}"
        if message:
            assert f"Can't save the runtime cache '{path}': " in message, where
            assert os.strerror(error) in message, where
        was_last_step = f" '{path.parent}': " in message
        expected = b"theirs" if message and not was_last_step else b"theirs and ours"
        assert read(store) == expected, where
        assert path.is_symlink(), where
        assert names_in(path.parent) == {"cache.bin", "cache.bin.lock", "kernels"}
    assert failed == CALLS - {"read"}


def test_a_comparison_that_fails_is_an_error(store: Store, path: Path) -> None:
    path.write_bytes(b"theirs")
    with (
        observed(Faults(errno.EIO, only="read")),
        pytest.raises(RuntimeError, match=f"read '{path}': {os.strerror(errno.EIO)}"),
    ):
        store.replace(b"theirs")


def test_a_read_that_fails_anywhere_says_so(store: Store, path: Path) -> None:
    path.rename(path.with_name("kernels"))
    path.symlink_to("kernels")
    reset(path)
    failed = set()
    for nth in range(1, 1000):
        faults = Faults(errno.EIO, nth)
        Path(f"{path}.lock").unlink(missing_ok=True)
        try:
            with observed(faults):
                data = read(store)
        except RuntimeError as error:
            assert f"Can't load the runtime cache '{path}': " in str(error)
            assert os.strerror(errno.EIO) in str(error)
        else:
            assert data == b"theirs"
        if not faults.failed:
            break
        failed.add(faults.failed)
        assert path.read_bytes() == b"theirs"
        assert names_in(path.parent) <= {"cache.bin", "cache.bin.lock", "kernels"}
    of_writes = {"fsync", "futimens", "opendir", "readdir", "rename", "write"}
    assert failed == CALLS - of_writes


@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_an_interrupted_call_is_made_again(store: Store, path: Path, call: str) -> None:
    for nth in range(1, 1000):
        faults = Faults(errno.EINTR, nth, call)
        assert write_with(faults, store, path) == ""
        with observed(Faults(errno.EINTR, 1, "read")):
            assert read(store) == b"theirs and ours"
        if not faults.failed:
            break
    assert nth > 1


def test_reads_and_writes_that_stop_short_are_continued(
    store: Store, path: Path
) -> None:
    def two_bytes(call: str) -> int:
        return -2 if call in ("read", "write") else 0

    assert write_with(two_bytes, store, path) == ""
    with observed(two_bytes):
        assert read(store) == b"theirs and ours"


@pytest.mark.parametrize("contents", [b"short", b"much longer"])
def test_a_file_that_changes_while_it_is_read_is_read_again(
    store: Store, path: Path, contents: bytes
) -> None:
    path.write_bytes(b"0123456789")
    reads = 0

    def change(call: str) -> int:
        nonlocal reads
        if call == "read":
            reads += 1
            if reads == 1:
                path.write_bytes(contents)
        return 0

    with observed(change):
        assert read(store) == contents
    assert reads > 1


def test_a_file_that_never_stops_changing_is_an_error(store: Store, path: Path) -> None:
    def grow(call: str) -> int:
        if call == "read":
            path.write_bytes(bytes(path.stat().st_size + 1))
        return 0

    with (
        observed(grow),
        pytest.raises(
            RuntimeError,
            match=f"Can't load the runtime cache '{path}': read '{path}': it kept changing. "
            "A program writes it without the lock",
        ),
    ):
        store.read()


def test_a_directory_that_can_not_be_synced_by_nature_is_no_error(
    store: Store, path: Path
) -> None:
    faults = Faults(errno.EINVAL, 2, "fsync")
    assert write_with(faults, store, path) == ""
    assert faults.failed == "fsync"


@pytest.mark.parametrize("error", [errno.EBUSY, errno.EPERM, errno.EACCES])
def test_where_a_rename_is_impossible_the_file_is_written_in_place(
    store: Store, path: Path, error: int
) -> None:
    reset(path)
    before = path.stat()
    contents = store.read()
    assert contents is not None
    with observed(Faults(error, only="rename")):
        replaced = store.replace(b"theirs and ours", contents[1])
    assert replaced is not None and replaced.is_written
    assert replaced.in_place == f"rename to '{path}': {os.strerror(error)}"
    assert store.read() == (b"theirs and ours", replaced.generation)
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns > before.st_mtime_ns
    assert names_in(path.parent) == {"cache.bin", "cache.bin.lock"}


def test_a_write_in_place_that_finds_no_space_leaves_the_old_contents(
    store: Store, path: Path, log: Log
) -> None:
    # The first write goes to the temporary file. The second writes the part by which the new
    # contents are longer behind the old contents.
    faults = Faults(errno.ENOSPC, 2, "write", {"rename": errno.EBUSY})
    message = write_with(faults, store, path)
    assert f"write '{path}': {os.strerror(errno.ENOSPC)}" in message
    assert path.read_bytes() == b"theirs"
    assert log.lines() == []


def test_contents_that_can_not_be_restored_are_an_error_in_the_log(
    store: Store, path: Path, log: Log
) -> None:
    always = {"rename": errno.EBUSY, "ftruncate": errno.EIO}
    faults = Faults(errno.ENOSPC, 2, "write", always)
    assert os.strerror(errno.ENOSPC) in write_with(faults, store, path)
    assert log.lines() == [f"ERROR: Can't cut '{path}' back to 6 bytes: it is damaged"]


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_flock_is_an_error(
    store: Store, path: Path, error: int
) -> None:
    faults = Faults(0, 0, always={"flock": error})
    message = write_with(faults, store, path)
    text = f"the runtime cache '{path}': Can't lock lock file '{path}.lock': "
    assert f"Can't save {text}" in message
    assert message.endswith("(its file system may have no flock)")
    with observed(faults), pytest.raises(RuntimeError, match=f"Can't load {text}"):
        store.read()
    assert path.read_bytes() == b"theirs"


def test_eacces_of_flock_is_contention(store: Store, path: Path) -> None:
    message = write_with(Faults(0, 0, always={"flock": errno.EACCES}), store, path)
    assert message.endswith(f"another holder kept the lock '{path}.lock' for 0 ms")


def test_a_file_system_that_wants_a_writable_lock_file_gets_one(
    store: Store, path: Path
) -> None:
    assert write_with(Faults(errno.EBADF, only="flock"), store, path) == ""


def test_a_lock_file_that_must_be_writable_and_is_not_is_an_error(
    store: Store, path: Path
) -> None:
    calls = []

    def allow_only_reading(call: str) -> int:
        calls.append(call)
        errors = {"flock": errno.EBADF, "open": errno.EACCES}
        return errors.get(call, 0) if "flock" in calls else 0

    assert write_with(allow_only_reading, store, path).endswith(
        f"Can't open lock file '{path}.lock': Permission denied"
        " (its file system needs write access to lock it)"
    )


@pytest.mark.parametrize("operation", ["read", "write"])
@pytest.mark.parametrize("loss", ["renamed", "replaced"])
def test_a_lock_file_lost_between_its_open_and_its_flock_guards_nothing(
    store: Store, path: Path, operation: str, loss: str
) -> None:
    lock, lost = Path(f"{path}.lock"), Path(f"{path}.lost")
    are_free = set()

    def lose(call: str) -> int:
        if call == "flock" and not lost.exists():
            lock.rename(lost)
            if loss == "replaced":
                lock.touch()
        if call == operation:
            are_free.add((is_free(lock), is_free(lost)))
        return 0

    if operation == "write":
        assert write_with(lose, store, path) == ""
    else:
        with observed(lose):
            assert read(store) == b"0"
    assert are_free == {(False, True)}


def test_the_cpp_runtime_logs_nothing_under_the_lock(path: Path) -> None:
    """The fixture `logs_without_the_lock` covers only the Python runtime."""
    store = Store("cpp", path)
    Path(f"{path}.1-0123456789abcdef.tmp").touch()
    lock_was_free = []

    def try_the_lock(call: str) -> int:
        if call == "fwrite":
            lock_was_free.append(is_free(Path(f"{path}.lock")))
        return 0

    with info(), observed(try_the_lock):
        store.replace(b"ours")  # also logs the removal of the stale file
        store.replace(b"ours")
        store.read()
    assert lock_was_free == [True] * 4


def is_free(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_an_offer_that_is_taken_for_a_leftover_is_made_again(
    runtime: str, other_runtime: str, path: Path
) -> None:
    store = Store(runtime, path)
    write(store, b"theirs")
    found: list[int] = []

    def before(call: str) -> int:
        if call != "flock":
            return 0
        if not found:
            # Locks the offer before its own writer does, as a writer that looks for leftovers may.
            (offer,) = path.parent.glob("*.tmp")
            found.append(os.open(offer, os.O_RDONLY))
            fcntl.flock(found[0], fcntl.LOCK_SH | fcntl.LOCK_NB)
        elif len(found) == 1 and any(path.parent.glob("*.merge")):
            found.append(0)
            os.close(found[0])
            write(Store(other_runtime, path), b"theirs, too")  # removes leftovers
        return 0

    with observed(before), store.wait_for_turn(b"ours") as turn:
        assert len(found) == 2
        assert not turn.is_saved
    assert not [name for name in names_in(path.parent) if name.endswith(".tmp")]
