"""The lock of the Python runtime against those of the C++ runtime and of `filelock`.

FILE_LOCK_TOOL is the program of tests/util/processes/file_lock_tool.cpp; FILELOCK_3 a directory
with an old filelock, one that unlinks the lock file at every release.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from tests.util.processes.line_process import (
    environment_with_old_filelock,
    file_lock_tool,
)
from torch_tensorrt.runtime._cache.file_lock import (
    FileLockError,
    call_without_lock,
    file_lock,
    lock_path_of,
)


@pytest.fixture
def lock_path(tmp_path: Path) -> Path:
    return tmp_path / "cache.bin.lock"


@contextmanager
def cpp_lock(path: Path, mode: str) -> Iterator[None]:
    with file_lock_tool(mode, path) as tool:
        assert tool.ask("try") == "acquired"
        yield
        assert tool.ask("unlock") == "released"


HOLDERS: dict[str, Callable[[Path], AbstractContextManager[object]]] = {
    "cpp-exclusive": lambda path: cpp_lock(path, "exclusive"),
    "cpp-shared": lambda path: cpp_lock(path, "shared"),
    "filelock": lambda path: FileLock(path),
    "python-exclusive": lambda path: file_lock(str(path), 0),
    "python-shared": lambda path: file_lock(str(path), 0, shared=True),
}


@pytest.mark.parametrize("shared", [False, True], ids=["exclusive", "shared"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_holder_excludes_until_it_releases(
    lock_path: Path, holder: str, shared: bool
) -> None:
    def take(timeout: float) -> AbstractContextManager[None]:
        return file_lock(str(lock_path), timeout, shared=shared)

    with HOLDERS[holder](lock_path):
        if shared and holder.endswith("-shared"):
            with take(0):
                pass
        else:
            for timeout in (0, 0.06):
                with pytest.raises(FileLockError) as failure, take(timeout):
                    pass
                assert str(failure.value) == (
                    f"another holder kept the lock '{lock_path}' for {round(timeout * 1000)} ms"
                )
    with take(0):
        pass
    assert lock_path.exists()


@pytest.mark.parametrize("holds", ["exclusive", "shared"])
@pytest.mark.parametrize("tries", ["exclusive", "shared"])
def test_excludes_the_cpp_runtime(lock_path: Path, holds: str, tries: str) -> None:
    with file_lock_tool(tries, lock_path) as tool:
        with file_lock(str(lock_path), 0, shared=holds == "shared"):
            together = holds == tries == "shared"
            assert tool.ask("try") == ("acquired" if together else "busy")
        if not together:
            assert tool.ask("try") == "acquired"


@pytest.mark.parametrize("shared", [False, True], ids=["exclusive", "shared"])
def test_gets_the_lock_of_a_killed_holder(lock_path: Path, shared: bool) -> None:
    with file_lock_tool("exclusive", lock_path) as tool:
        assert tool.ask("try") == "acquired"
        tool.kill()
        with file_lock(str(lock_path), 0, shared=shared):
            pass


@pytest.mark.parametrize("shared", [False, True], ids=["exclusive", "shared"])
def test_waits_for_a_release(lock_path: Path, shared: bool) -> None:
    taken = threading.Event()

    def take() -> None:
        with file_lock(str(lock_path), 60, shared=shared):
            taken.set()

    waiter = threading.Thread(target=take)
    with file_lock_tool("exclusive", lock_path) as tool:
        assert tool.ask("try") == "acquired"
        waiter.start()
        assert not taken.wait(0.1)
        assert tool.ask("unlock") == "released"
        waiter.join()
    assert taken.is_set()


def test_an_error_within_the_block_releases(lock_path: Path) -> None:
    for shared in (False, True):
        with pytest.raises(KeyError), file_lock(str(lock_path), 0, shared=shared):
            raise KeyError
    with FileLock(lock_path, timeout=0):
        pass


@pytest.mark.parametrize("shared", [False, True], ids=["exclusive", "shared"])
def test_what_wants_no_lock_is_called_once_it_is_released(
    lock_path: Path, shared: bool
) -> None:
    called: list[str] = []

    def call(name: str) -> None:
        with FileLock(lock_path, timeout=0):
            called.append(name)

    call_without_lock(lambda: call("before"))
    other_lock_path = f"{lock_path}.other"
    with pytest.raises(KeyError):
        with file_lock(str(lock_path), 0, shared=shared):
            call_without_lock(lambda: call_without_lock(lambda: call("in a call")))
            with file_lock(other_lock_path, 0):
                call_without_lock(lambda: call("within two"))
            call_without_lock(lambda: call("within one"))
            assert called == ["before"]
        raise KeyError
    assert called == ["before", "within two", "within one", "in a call"]


def test_what_wants_no_lock_does_not_wait_for_other_threads(lock_path: Path) -> None:
    called = threading.Event()
    with file_lock(str(lock_path), 0):
        thread = threading.Thread(target=lambda: call_without_lock(called.set))
        thread.start()
        assert called.wait(60)
        thread.join()


def test_what_wants_no_lock_is_called_after_a_lock_that_was_not_taken(
    lock_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def collect_garbage(_: float) -> None:
        call_without_lock(lambda: events.append("called"))
        events.append("slept")

    with file_lock_tool("exclusive", lock_path) as holder:
        assert holder.ask("try") == "acquired"
        monkeypatch.setattr(time, "sleep", collect_garbage)
        with (
            pytest.raises(FileLockError, match="another holder"),
            file_lock(str(lock_path), 0.001, shared=True),
        ):
            pass
    sleeps = events.count("slept")
    assert sleeps > 0
    assert events == sleeps * ["slept"] + sleeps * ["called"]


@pytest.mark.parametrize("shared", [False, True], ids=["exclusive", "shared"])
def test_a_missing_directory_is_an_error_and_stays_missing(
    tmp_path: Path, shared: bool
) -> None:
    path = tmp_path / "gone" / "cache.bin.lock"
    with (
        pytest.raises(FileLockError) as failure,
        file_lock(str(path), 1, shared=shared),
    ):
        pass
    assert str(failure.value) == (
        f"Can't open lock file '{path}': No such file or directory"
    )
    assert not path.parent.exists()


def test_a_fifo_is_refused(lock_path: Path) -> None:
    os.mkfifo(lock_path)
    with (
        pytest.raises(FileLockError) as failure,
        file_lock(str(lock_path), 1, shared=True),
    ):
        pass
    assert str(failure.value) == (
        f"Can't use '{lock_path}' as a lock file: not a regular file"
    )


COUNT = """
import sys
from pathlib import Path
from torch_tensorrt.runtime._cache.file_lock import file_lock
lock, times, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(times):
    with file_lock(lock, 60):
        path.write_text(str(int(path.read_text()) + 1))
"""

USE_OLD_FILELOCK = """
import sys
import filelock
assert filelock.__version__.startswith("3."), filelock.__version__
from pathlib import Path
from tests.py.runtime.runtime_cache_testing import handle_of, to_tensor, to_bytes
path = Path(sys.argv[1])
handle = handle_of("python", path)
handle.deserialize(to_tensor(b"kernels"))
try:
    handle.save()
except RuntimeError as error:
    assert f"lock file '{path}.lock': No such file or directory" in str(error), error
else:
    raise AssertionError("saved to a missing directory")
assert not path.parent.exists()
path.parent.mkdir()
assert handle.save() == 7
other = handle_of("python", path)
assert other.load() == 7
assert to_bytes(other.serialize()) == b"kernels"
"""


def test_processes_with_any_filelock_exclude_each_other(
    tmp_path: Path, lock_path: Path
) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    times = 100
    arguments = [str(lock_path), str(times), str(counter)]
    counting = [
        subprocess.Popen(
            [sys.executable, "-c", COUNT, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        for environment in (None, environment_with_old_filelock())
    ]
    for process in counting:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    with file_lock_tool("exclusive", lock_path) as tool:
        for process in counting:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        tool.tell(f"count {times} {counter}")
        for process in counting:
            process.communicate(timeout=300)
            assert process.returncode == 0
        assert tool.hear() == "counted"
    assert counter.read_text().strip() == str(3 * times)


def test_saves_and_loads_with_an_old_filelock(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", USE_OLD_FILELOCK, str(tmp_path / "new" / "cache.bin")],
        env=environment_with_old_filelock(),
        check=True,
        timeout=300,
    )


def test_the_lock_of_a_file_has_filelocks_usual_name() -> None:
    assert lock_path_of("/var/cache/model.bin") == "/var/cache/model.bin.lock"
