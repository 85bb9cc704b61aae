"""A prune that fails, is killed, or meets another process at any of its system calls.

LD_PRELOAD names the library of observed_calls.cpp, which calls the test before each call.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import torchtrt_cache.prune  # noqa: F401  or the first faults would meet its import
from tests.py.torchtrt_cache.caches import (
    Snapshot,
    kind_file,
    put,
    snapshot,
)
from tests.util.processes.observed_calls import Faults, observed
from torchtrt_cache.__main__ import main
from torchtrt_cache.file_lock import FileLockError, LockWaits, file_lock
from torchtrt_cache.runtime_cache_file import RuntimeCacheFile

OLD, OLDER, IN_USE = (kind_file(driver) for driver in ("13.0", "12.9", "13.1"))
LEFTOVERS = {f"{OLD}.1-0123456789abcdef.tmp", f"{OLD}.1-0123456789abcdef.merge"}
DONE = {f"{OLD}.lock", f"{OLDER}.lock", IN_USE, f"{IN_USE}.lock", "link.bin", "notes"}
MANY = 1000  # more system calls than a prune makes


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "caches"
    directory.mkdir()
    return directory


def fill(directory: Path) -> Snapshot:
    """Makes two old caches, one without a lock file and one with leftovers, and other files."""
    for path in directory.iterdir():
        path.unlink()
    put(directory / OLD, 50)
    put(directory / OLDER, 60, has_lock=False)
    put(directory / IN_USE, 0.1)
    for name in LEFTOVERS:
        (directory / name).write_bytes(b"torn")
    (directory / "notes").touch()
    (directory / kind_file("11.0")).symlink_to("notes")
    (directory / kind_file("11.0")).rename(directory / "link.bin")
    return snapshot(directory)


def prune(directory: Path) -> int:
    return main(["prune", str(directory), "--older-than", "30d"])


def check_is_whole(directory: Path, before: Snapshot) -> None:
    """Checks that only old kinds' files are gone, caches last, and that others are unchanged."""
    after = snapshot(directory)
    assert {name: before[name] for name in after if name in before} == {
        name: state for name, state in after.items() if name in before
    }
    new = after.keys() - before.keys() - {f"{OLDER}.lock"}
    assert all(re.fullmatch(re.escape(OLDER) + r"\.\d+-\w{16}\.tmp", n) for n in new)
    gone = before.keys() - after.keys()
    assert gone <= {OLD, OLDER} | LEFTOVERS
    assert OLD not in gone or gone >= LEFTOVERS


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES])
def test_a_call_that_fails_harms_nothing_and_is_said(
    error: int, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = set()
    for nth in range(1, MANY):
        before = fill(directory)
        faults = Faults(error, nth)
        with observed(faults):
            status = prune(directory)
        said = capsys.readouterr()
        check_is_whole(directory, before)
        names = set(snapshot(directory))
        where = f"call {nth}, of {faults.failed}: {said}"
        if status == 1:
            assert said.err.startswith(f"Can't {'prune' if not said.out else 'remove'}")
            assert os.strerror(error) in said.err, where
            assert names != DONE, where
        elif names != DONE:
            assert "in use: " in said.out, where
        if not faults.failed:
            break
        failed.add(faults.failed)
        assert prune(directory) == 0
        assert set(snapshot(directory)) == DONE
        capsys.readouterr()
    # In some languages, argparse looks for translations.
    assert failed - {"stat"} == {
        "fchmod",
        "fchown",
        "flock",
        "fstat",
        "link",
        "lstat",
        "open",
        "opendir",
        "readdir",
        "unlink",
        "utimensat",
    }


class AtCall:
    """Calls a function before the nth call."""

    def __init__(self, nth: int, function: Callable[[], object]) -> None:
        self.calls = 0
        self.result: object = None
        self._nth = nth
        self._function = function

    def __call__(self, call: str) -> int:
        self.calls += 1
        if self.calls == self._nth:
            self.result = self._function()
        return 0


def test_a_prune_that_is_killed_leaves_whole_kinds(directory: Path) -> None:
    kills = 0
    for nth in range(1, MANY):
        before = fill(directory)
        child = os.fork()
        if child == 0:
            with observed(AtCall(nth, lambda: os.kill(os.getpid(), signal.SIGKILL))):
                os._exit(prune(directory))
        _, status = os.waitpid(child, 0)
        check_is_whole(directory, before)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        kills += 1
        assert prune(directory) == 0
        assert set(snapshot(directory)) == DONE
    assert kills > 30


def save(path: Path) -> bool:
    """Saves as engines do. Returns False if somebody else had the lock."""
    store = RuntimeCacheFile(str(path), LockWaits(timeout=0))
    try:
        contents = store.read()
        store.replace(memoryview(b"saved"), contents.generation if contents else None)
    except RuntimeError:
        return False
    return True


def load(path: Path) -> bool:
    """Returns True if there was a file to load."""
    lock = f"{path}.lock"
    try:
        with file_lock(lock, LockWaits(timeout=0), shared=True):
            os.utime(lock)
            return path.exists()
    except FileLockError:
        return False


@pytest.mark.parametrize("use", [save, load])
@pytest.mark.parametrize("name", [OLD, OLDER])
def test_a_cache_that_is_used_meanwhile_stays(
    use: Callable[[Path], bool], name: str, directory: Path
) -> None:
    uses = 0
    for nth in range(1, MANY):
        fill(directory)
        using = AtCall(nth, partial(use, directory / name))
        with observed(using):
            assert prune(directory) == 0
        assert not using.result or (directory / name).exists(), f"call {nth}"
        uses += bool(using.result)
        if using.calls < nth:
            break
    assert uses > 10
