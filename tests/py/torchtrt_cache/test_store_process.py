"""StoreProcess: its helper process, deadlines, deaths and forks."""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.util.processes.line_process import LineProcess
from tests.util.servers.object_servers import (
    FaultyProxy,
    MotoServer,
    environment_of_client,
)
from torchtrt_cache.objects import ObjectStoreError
from torchtrt_cache.store_process import StoreProcess, _Channel, check_library

NAME = "kind.bin"
LONG = 60.0  # seconds; reached only if something hangs

pytestmark = pytest.mark.usefixtures("proxy")


@pytest.fixture
def proxy(server: MotoServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.port) as proxy:
        for name, value in environment_of_client(proxy.port).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def store(proxy: FaultyProxy, url: str) -> Iterator[StoreProcess]:
    store = StoreProcess(url)
    yield store
    store.close()


@pytest.fixture
def without_proxy(
    proxy: FaultyProxy, server: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For tests that count the descriptors of this process: the proxy holds some."""
    del proxy  # its environment is already set
    for name, value in environment_of_client(server.port).items():
        monkeypatch.setenv(name, value)


def pid_of(store: StoreProcess) -> int:
    """The id of the running helper process."""
    assert store._helper is not None
    return store._helper._process.pid


def wait_for_end(pidfd: int) -> None:
    """Waits for the end of a process, which need not be a child."""
    try:
        ended, _, _ = select.select([pidfd], [], [], LONG)
        assert ended
    finally:
        os.close(pidfd)


def descriptors(pid: int | str = "self") -> list[str]:
    return sorted(entry.name for entry in Path(f"/proc/{pid}/fd").iterdir())


def soon(seconds: float = 0.3) -> float:
    return time.monotonic() + seconds


@pytest.mark.parametrize("size", [1, 30 << 20])
def test_a_body_comes_back(store: StoreProcess, size: int) -> None:
    body = os.urandom(size)
    put = store.replace(NAME, memoryview(body), None)
    assert put is not None
    assert put == store.generation(NAME)
    first_bytes: list[None] = []
    contents = store.read(NAME, on_first_byte=lambda: first_bytes.append(None))
    assert contents is not None
    assert contents.generation == put
    assert contents.data == body
    assert len(first_bytes) == 1
    assert store.names() == [NAME]


def test_the_data_may_be_written_to(store: StoreProcess) -> None:
    store.replace(NAME, memoryview(b"theirs"), None)
    contents = store.read(NAME)
    assert contents is not None
    contents.data[:] = b"-ours-"
    assert bytes(contents.data) == b"-ours-"


def test_what_is_missing_is_none(store: StoreProcess) -> None:
    assert store.generation(NAME) is None
    assert store.read(NAME) is None
    assert store.names() == []


def test_a_conflict_is_none(store: StoreProcess) -> None:
    first = store.replace(NAME, memoryview(b"first"), None)
    assert store.replace(NAME, memoryview(b"second"), None) is None
    assert store.replace(NAME, memoryview(b"second"), first) is not None
    assert store.replace(NAME, memoryview(b"third"), first) is None


def test_the_reason_of_the_store_comes_through(
    proxy: FaultyProxy, store: StoreProcess
) -> None:
    proxy.reject(403, "AccessDenied")
    with pytest.raises(
        ObjectStoreError, match=r"^HTTP 403 Forbidden \(AccessDenied\)$"
    ):
        store.generation(NAME)
    proxy.heal()
    pid = pid_of(store)
    assert store.generation(NAME) is None
    assert pid_of(store) == pid


def test_hundreds_of_names_come_back(store: StoreProcess, url: str) -> None:
    names = [f"{number:0>250}.bin" for number in range(300)]
    for name in names:
        store.replace(name, memoryview(b"-"), None)
    assert store.names() == names


def test_the_library_is_in_the_helper_alone(store: StoreProcess) -> None:
    check_library()
    store.names()
    assert "obstore" not in sys.modules
    maps = Path(f"/proc/{pid_of(store)}/maps").read_text()
    assert "obstore" in maps
    assert "torch/" not in maps
    assert "tensorrt" not in maps


def test_a_missing_library_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = [entry for entry in sys.path if not (Path(entry) / "obstore").exists()]
    monkeypatch.setattr(sys, "path", path)
    with pytest.raises(ImportError, match=r"torch-tensorrt-rtx-runtime\[fleet\]"):
        check_library()
    with pytest.raises(
        ObjectStoreError, match=r"status 1: ModuleNotFoundError: .*obstore"
    ):
        StoreProcess(url).names()


@pytest.mark.parametrize("option", ["-I", "-E"])
def test_an_isolated_program_has_an_isolated_helper(
    option: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        f"import sys; sys.path = {sys.path!r}; "
        "from torchtrt_cache.store_process import StoreProcess; "
        "store = StoreProcess(sys.argv[1]); print(store.names()); store.close()"
    )
    encodings = tmp_path / "encodings"
    encodings.mkdir()
    (encodings / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, option, "-c", code, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("executable", ["", None])
def test_a_program_without_a_python_is_told(
    executable: str | None, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(ObjectStoreError, match="this program has no Python to run"):
        StoreProcess(url).names()


def test_a_frozen_program_is_not_started_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ObjectStoreError, match="this program has no Python to run"):
        StoreProcess(url).names()


def test_the_helper_says_nothing_at_the_terminal(
    proxy: FaultyProxy, store: StoreProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    store.names()
    proxy.refuse()
    with pytest.raises(ObjectStoreError, match="connection refused"):
        store.names()
    os.kill(pid_of(store), signal.SIGKILL)
    store.close()
    assert capfd.readouterr() == ("", "")


def test_eight_processes_lose_no_increment(url: str) -> None:
    code = """
import sys
from torchtrt_cache.store_process import StoreProcess
store = StoreProcess(sys.argv[1])
for _ in range(20):
    while True:
        contents = store.read("count")
        count = int(bytes(contents.data)) if contents else 0
        data = memoryview(str(count + 1).encode())
        if store.replace("count", data, contents and contents.generation):
            break
store.close()
"""
    command = [sys.executable, "-c", code, url]
    processes = [subprocess.Popen(command) for _ in range(8)]
    assert [process.wait() for process in processes] == [0] * 8
    store = StoreProcess(url)
    contents = store.read("count")
    store.close()
    assert contents is not None
    assert bytes(contents.data) == b"160"


@pytest.mark.parametrize("call", ["generation", "read", "replace", "names"])
def test_a_deadline_kills_the_helper(
    proxy: FaultyProxy, store: StoreProcess, call: str
) -> None:
    store.names()
    end = os.pidfd_open(pid_of(store))
    proxy.hang()
    arguments: dict[str, list[object]] = {
        "names": [],
        "replace": [NAME, memoryview(b"-"), None],
    }
    with pytest.raises(ObjectStoreError, match=r"^no answer within \d{1,3} ms$"):
        getattr(store, call)(*arguments.get(call, [NAME]), deadline=soon())
    wait_for_end(end)
    proxy.heal()
    assert store.generation(NAME) is None


def test_a_deadline_that_is_past_is_one(store: StoreProcess) -> None:
    with pytest.raises(ObjectStoreError, match="no answer within 0 ms"):
        store.names(deadline=time.monotonic() - 1)


def test_who_waits_in_vain_kills_nobody_elses_request(
    proxy: FaultyProxy, store: StoreProcess
) -> None:
    store.replace(NAME, memoryview(b"theirs"), None)
    proxy.hang()
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(store.generation(NAME)))
    before = proxy.count("HEAD")
    thread.start()
    while proxy.count("HEAD") == before:
        time.sleep(0.01)
    with pytest.raises(ObjectStoreError, match="no answer within"):
        store.names(deadline=soon())
    proxy.heal()  # the library tries again
    thread.join(LONG)
    assert found == [store.generation(NAME)]
    assert found != [None]


def test_close_ends_a_request_under_way(
    proxy: FaultyProxy, store: StoreProcess
) -> None:
    proxy.hang()
    reasons: list[str] = []

    def request() -> None:
        with pytest.raises(ObjectStoreError) as error:
            store.names()
        reasons.append(str(error.value))

    thread = threading.Thread(target=request)
    thread.start()
    while proxy.count("GET") == 0:
        time.sleep(0.01)
    store.close()
    thread.join(LONG)
    assert reasons == ["the helper process was killed by signal 9"]
    proxy.heal()
    assert store.names() == []


def test_an_error_of_on_first_byte_leaves_the_store_usable(
    store: StoreProcess,
) -> None:
    store.replace(NAME, memoryview(bytes(1 << 20)), None)

    def fail() -> None:
        raise KeyError("of the caller")

    with pytest.raises(KeyError):
        store.read(NAME, on_first_byte=fail)
    contents = store.read(NAME)
    assert contents is not None
    assert contents.data == bytes(1 << 20)


def test_the_first_byte_is_told_before_the_last_is_there(
    proxy: FaultyProxy, store: StoreProcess
) -> None:
    store.replace(NAME, memoryview(bytes(1 << 20)), None)
    proxy.slow_down(300)
    has_first_byte = threading.Event()
    with pytest.raises(ObjectStoreError, match="the helper process was killed"):
        store.read(NAME, on_first_byte=lambda: _kill_and_set(store, has_first_byte))
    assert has_first_byte.is_set()


def _kill_and_set(store: StoreProcess, event: threading.Event) -> None:
    os.kill(pid_of(store), signal.SIGKILL)
    event.set()


def test_a_helper_that_was_killed_between_requests_is_not_missed(
    store: StoreProcess,
) -> None:
    store.names()
    end = os.pidfd_open(pid_of(store))
    os.kill(pid_of(store), signal.SIGKILL)
    wait_for_end(end)
    assert store.names() == []


def test_a_helper_that_is_killed_at_any_moment_tears_nothing(
    store: StoreProcess,
) -> None:
    sizes = range(1 << 20, 20 + (1 << 20))
    killed = 0
    for size in sizes:
        body = memoryview(size.to_bytes(4, "little") * size)
        generation = store.generation(NAME)
        end = os.pidfd_open(pid_of(store))
        delay = random.uniform(0, 0.1)
        killer = threading.Timer(delay, os.kill, (pid_of(store), signal.SIGKILL))
        killer.start()
        try:
            store.replace(NAME, body, generation)
            store.read(NAME)
        except ObjectStoreError as error:
            assert str(error) == "the helper process was killed by signal 9"
            killed += 1
        killer.join()
        wait_for_end(end)
        contents = store.read(NAME)
        if contents is not None:
            size_there = int.from_bytes(contents.data[:4], "little")
            assert size_there in sizes
            assert contents.data == size_there.to_bytes(4, "little") * size_there
    assert killed > 0


def test_the_signals_of_a_stop_are_not_for_the_helper(store: StoreProcess) -> None:
    store.names()
    pid = pid_of(store)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    assert store.names() == []
    assert pid_of(store) == pid


PARENT = """
import os, signal, sys, threading, time
from torchtrt_cache.store_process import StoreProcess
store = StoreProcess(sys.argv[1])
store.names()
print(store._helper._process.pid, flush=True)
what = input()
if what == "read":
    store.read("kind.bin", on_first_byte=lambda: print("reads", flush=True))
elif what == "fork":
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(600)
    os.wait()
else:
    print("idle", flush=True)
    input()
"""


@pytest.mark.parametrize("what", ["idle", "read"])
def test_the_helper_ends_after_a_killed_parent(
    proxy: FaultyProxy, store: StoreProcess, url: str, what: str
) -> None:
    store.replace(NAME, memoryview(bytes(1 << 20)), None)
    with LineProcess(sys.executable, "-c", PARENT, url) as parent:
        end = os.pidfd_open(int(parent.hear()))
        proxy.slow_down(300)
        assert parent.ask(what) in ("idle", "reads")
        parent.kill()
        wait_for_end(end)


def test_the_helper_ends_though_a_child_of_its_parent_has_the_socket(url: str) -> None:
    with LineProcess(sys.executable, "-c", PARENT, url) as parent:
        end = os.pidfd_open(int(parent.hear()))
        child = int(parent.ask("fork"))
        parent.process.kill()
        try:
            wait_for_end(end)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_of_fork_has_a_helper_of_its_own(store: StoreProcess, url: str) -> None:
    put = store.replace(NAME, memoryview(b"theirs"), None)
    pid = pid_of(store)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            store.abandon()
            signal.alarm(int(LONG))
            is_right = store.generation(NAME) == put and pid_of(store) != pid
            store.close()
            another = StoreProcess(url)
            is_right = is_right and another.names() == [NAME]
            another.close()
            status = 0 if is_right else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0) == (child, 0)
    assert store.generation(NAME) == put
    assert pid_of(store) == pid


@pytest.mark.usefixtures("without_proxy")
def test_a_hundred_requests_leak_no_descriptor(store: StoreProcess) -> None:
    generation = store.replace(NAME, memoryview(b"theirs"), None)
    store.read(NAME)
    ours = len(descriptors())
    theirs = len(descriptors(pid_of(store)))
    for _ in range(25):
        generation = store.replace(NAME, memoryview(b"theirs"), generation)
        assert generation == store.generation(NAME)
        store.read(NAME)
        store.names()
    assert len(descriptors()) == ours
    # The number of connections to the server varies.
    assert len(descriptors(pid_of(store))) < theirs + 10


@contextmanager
def descriptors_below(limit: int, pid: int = 0) -> Iterator[None]:
    """During the block, a process (by default this one) can open no descriptor >= `limit`."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("without_proxy")
@pytest.mark.parametrize("free", [0, 1])
def test_a_body_without_a_descriptor_is_no_empty_object(
    store: StoreProcess, free: int
) -> None:
    store.replace(NAME, memoryview(b"theirs"), None)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with descriptors_below(lowest_free + free):
        with pytest.raises(ObjectStoreError, match=r"[Tt]oo many open files"):
            store.read(NAME)
        with pytest.raises(ObjectStoreError, match=r"[Tt]oo many open files"):
            store.names()
    contents = store.read(NAME)
    assert contents is not None
    assert contents.data == memoryview(b"theirs")


def test_a_helper_without_a_descriptor_writes_nothing(store: StoreProcess) -> None:
    put = store.replace(NAME, memoryview(b"theirs"), None)
    with (
        descriptors_below(3, pid_of(store)),
        pytest.raises(ObjectStoreError, match="a body is lost: too many open files"),
    ):
        store.replace(NAME, memoryview(b"ours"), put)
    assert store.generation(NAME) == put


def test_a_body_that_is_not_whole_is_an_error() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, tempfile.TemporaryFile() as body:
        body.write(b"half")
        body.flush()
        socket.send_fds(ours, [b'{"size": 8}'], [body.fileno()])
        with pytest.raises(ObjectStoreError, match="a body has 4 of 8 bytes"):
            _Channel(theirs).receive(soon(LONG))
        socket.send_fds(ours, [b'{"size": 8}'], [])
        with pytest.raises(ObjectStoreError, match="a body has 0 of 8 bytes"):
            _Channel(theirs).receive(soon(LONG))


def test_an_empty_body_is_refused(store: StoreProcess) -> None:
    put = store.replace(NAME, memoryview(b"theirs"), None)
    with pytest.raises(ObjectStoreError, match="an empty object is refused"):
        store.replace(NAME, memoryview(b""), put)
    assert store.generation(NAME) == put


@pytest.mark.usefixtures("without_proxy")
def test_helpers_leave_no_descriptor_behind(store: StoreProcess) -> None:
    before = len(descriptors())
    for _ in range(5):
        store.names()
        end = os.pidfd_open(pid_of(store))
        os.kill(pid_of(store), signal.SIGKILL)
        wait_for_end(end)
    store.close()
    assert len(descriptors()) == before


def test_the_module_is_the_helper(url: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "torchtrt_cache.store_process", url]
    with ours, theirs, subprocess.Popen(command, stdin=theirs.fileno()) as helper:
        theirs.close()
        ours.send(b'{"call": "generation", "name": "kind.bin"}')
        assert ours.recv(100) == b'{"value": null, "size": 0}'
        ours.close()
        assert helper.wait(LONG) == 0
