"""The Python runtime's lock against the locks of the C++ runtime and of `filelock`.

`lock_peer` needs the environment variables FILE_LOCK_TOOL and FILELOCK_3.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from tests.util.processes.line_process import LineProcess, file_lock_tool, lock_peer
from torchtrt_cache.file_lock import (
    FileLockError,
    LockWaits,
    call_without_lock,
    file_lock,
    lock_path_of,
)

PEERS = ["cpp-exclusive", "cpp-shared", "filelock-4", "filelock-3"]
OURS = ["python-exclusive", "python-shared"]
BOTH_RUNTIMES = ["cpp-exclusive", "cpp-shared", *OURS]


@pytest.fixture
def lock_path(tmp_path: Path) -> Path:
    return tmp_path / "cache.bin.lock"


@contextmanager
def held(kind: str, path: Path) -> Iterator[None]:
    if kind in OURS:
        with file_lock(str(path), LockWaits(0), shared=kind == "python-shared"):
            yield
    else:
        with lock_peer(kind, path) as peer:
            assert peer.ask("try") == "acquired"
            yield
            assert peer.ask("unlock") == "released"


def outcome(kind: str, path: Path) -> str:
    """The result of an attempt to take the lock: "acquired", "busy" or the text of the error."""
    if kind not in OURS:
        with lock_peer(kind, path) as peer:
            answer = peer.ask("try")
        return answer.partition("] ")[2] or answer
    try:
        with held(kind, path):
            return "acquired"
    except FileLockError as error:
        return "busy" if "another holder" in str(error) else str(error)


@pytest.mark.parametrize("shared", [False, True], ids=["exclusive", "shared"])
@pytest.mark.parametrize("holder", [*PEERS, *OURS])
def test_a_holder_excludes_until_it_releases(
    lock_path: Path, holder: str, shared: bool
) -> None:
    def take(timeout: float) -> AbstractContextManager[None]:
        return file_lock(str(lock_path), LockWaits(timeout), shared=shared)

    with held(holder, lock_path):
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


@pytest.mark.parametrize("holds", OURS)
@pytest.mark.parametrize("tries", PEERS)
def test_excludes_a_peer_until_it_is_released(
    lock_path: Path, holds: str, tries: str
) -> None:
    with lock_peer(tries, lock_path) as peer:
        with held(holds, lock_path):
            together = holds == "python-shared" and tries == "cpp-shared"
            assert peer.ask("try") == ("acquired" if together else "busy")
        if not together:
            assert peer.ask("try") == "acquired"


@pytest.mark.parametrize("shared", [False, True], ids=["exclusive", "shared"])
@pytest.mark.parametrize("kind", PEERS)
def test_gets_the_lock_of_a_killed_holder(
    lock_path: Path, kind: str, shared: bool
) -> None:
    with lock_peer(kind, lock_path) as peer:
        assert peer.ask("try") == "acquired"
        peer.kill()
        with file_lock(str(lock_path), LockWaits(0), shared=shared):
            pass


@pytest.mark.parametrize("shared", [False, True], ids=["exclusive", "shared"])
def test_waits_for_a_release(lock_path: Path, shared: bool) -> None:
    taken = threading.Event()

    def take() -> None:
        with file_lock(str(lock_path), LockWaits(60), shared=shared):
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
        with (
            pytest.raises(KeyError),
            file_lock(str(lock_path), LockWaits(0), shared=shared),
        ):
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
        with file_lock(str(lock_path), LockWaits(0), shared=shared):
            call_without_lock(lambda: call_without_lock(lambda: call("in a call")))
            with file_lock(other_lock_path, LockWaits(0)):
                call_without_lock(lambda: call("within two"))
            call_without_lock(lambda: call("within one"))
            assert called == ["before"]
        raise KeyError
    assert called == ["before", "within two", "within one", "in a call"]


def test_what_wants_no_lock_does_not_wait_for_other_threads(lock_path: Path) -> None:
    called = threading.Event()
    with file_lock(str(lock_path), LockWaits(0)):
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
            file_lock(str(lock_path), LockWaits(0.001), shared=True),
        ):
            pass
    sleeps = events.count("slept")
    assert sleeps > 0
    assert events == sleeps * ["slept"] + sleeps * ["called"]


@pytest.mark.parametrize("kind", BOTH_RUNTIMES)
def test_a_missing_directory_is_an_error_and_stays_missing(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "gone" / "cache.bin.lock"
    assert outcome(kind, path) == (
        f"Can't open lock file '{path}': No such file or directory"
    )
    assert not path.parent.exists()


@pytest.mark.parametrize("kind", BOTH_RUNTIMES)
def test_a_file_in_place_of_the_directory_is_an_error(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "file" / "cache.bin.lock"
    path.parent.touch()
    assert outcome(kind, path) == f"Can't open lock file '{path}': Not a directory"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("kind", BOTH_RUNTIMES)
def test_anything_but_a_regular_file_is_refused(
    lock_path: Path, kind: str, make: Callable[[Path], None]
) -> None:
    make(lock_path)
    assert outcome(kind, lock_path) == (
        f"Can't use '{lock_path}' as a lock file: not a regular file"
    )


@pytest.mark.parametrize("kind", BOTH_RUNTIMES)
def test_a_symbolic_link_is_refused(lock_path: Path, kind: str) -> None:
    target = lock_path.with_name("target")
    lock_path.symlink_to(target)
    assert outcome(kind, lock_path) == (
        f"Can't open lock file '{lock_path}': {os.strerror(errno.ELOOP)}"
        " (a symbolic link is refused here)"
    )
    assert not target.exists()


@pytest.mark.parametrize("kind", BOTH_RUNTIMES)
def test_the_contents_of_the_lock_file_stay(lock_path: Path, kind: str) -> None:
    lock_path.write_text("a note")
    assert outcome(kind, lock_path) == "acquired"
    assert lock_path.read_text() == "a note"


LEASE = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)  # the kernel sends SIGIO to ask for the lease
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
try:
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
except OSError as error:
    print(error, flush=True)
print("leased", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", BOTH_RUNTIMES)
def test_a_lease_on_the_lock_file_is_contention(lock_path: Path, kind: str) -> None:
    with LineProcess(sys.executable, "-c", LEASE, str(lock_path)) as lessee:
        if (answer := lessee.hear()) != "leased":
            pytest.skip(f"this file system has no leases: {answer}")
        assert outcome(kind, lock_path) == "busy"
    assert outcome(kind, lock_path) == "acquired"


# CPython 3.12 and later warn of forks in processes with threads, such as torch's.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("kind", OURS)
def test_a_forked_child_does_not_release_its_parents_lock(
    lock_path: Path, kind: str
) -> None:
    lock = held(kind, lock_path)
    with lock:
        child = os.fork()
        if child == 0:
            lock.__exit__(None, None, None)
            os._exit(0)
        assert os.waitpid(child, 0) == (child, 0)
        assert outcome("cpp-exclusive", lock_path) == "busy"
    assert outcome("cpp-exclusive", lock_path) == "acquired"


def test_no_count_is_lost(tmp_path: Path, lock_path: Path) -> None:
    times = 100
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count() -> None:
        for _ in range(times):
            with file_lock(str(lock_path), LockWaits(60)):
                counter.write_text(str(int(counter.read_text()) + 1))

    threads = [threading.Thread(target=count) for _ in range(2)]
    with (
        lock_peer("cpp-exclusive", lock_path) as cpp,
        lock_peer("filelock-4", lock_path) as new,
        lock_peer("filelock-3", lock_path) as old,
    ):
        peers = [cpp, new, old]
        for peer in peers:
            peer.tell(f"count {times} {counter}")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [peer.hear() for peer in peers] == ["counted"] * len(peers)
    assert counter.read_text() == str(times * (len(peers) + len(threads)))


def test_the_lock_of_a_file_has_filelocks_usual_name() -> None:
    assert lock_path_of("/var/cache/model.bin") == "/var/cache/model.bin.lock"
