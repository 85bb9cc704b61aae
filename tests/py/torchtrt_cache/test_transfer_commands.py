"""torchtrt-cache pull, push and sync, run as processes without a GPU on a real object store."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import pytest

from tests.py.runtime.unprivileged import (
    Child,
    enter_mount_namespace,
    give_up_capabilities,
    mount,
)
from tests.py.torchtrt_cache.caches import kind_file
from tests.util.servers.object_servers import (
    FaultyProxy,
    MotoServer,
    environment_of_client,
)
from torchtrt_cache.__main__ import main
from torchtrt_cache.store_process import StoreProcess

TIMEOUT = 240.0  # seconds per command
PATIENCE = 60.0  # seconds
A, B, C = (kind_file(driver) for driver in ("13.0", "12.9", "12.8"))
OTHER = kind_file("13.0", "nvidia-a10")
GPU = "NVIDIA L4"  # the GPU of A, B and C

Outcome = tuple[int, list[str], str]
"""The exit status, the lines of stdout, and stderr."""


def environment(gpu: str | None = None, **variables: str) -> dict[str, str]:
    """The environment of a machine with that GPU, or without one."""
    folder = Path(os.environ["FAKE_CUDA_DRIVER_LIBRARY"]).parent
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), **variables}
    environment.pop("FAKE_CUDA_GPU", None)
    return {**environment, "FAKE_CUDA_GPU": gpu} if gpu else environment


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "torchtrt_cache", *map(str, arguments)]


def run(*arguments: str | Path, gpu: str | None = None, **variables: str) -> Outcome:
    ended = subprocess.run(
        command(*arguments),
        env=environment(gpu, **variables),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return ended.returncode, ended.stdout.splitlines(), ended.stderr


def run_here(*arguments: str) -> Outcome:
    """Runs a command in this process, for limits that a child process would not inherit."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(list(arguments))
    return status, out.getvalue().splitlines(), err.getvalue()


def stem(name: str) -> str:
    return name.removesuffix(".bin")


def in_step(name: str) -> str:
    return f"{stem(name)} is in step"


@contextmanager
def store_at(url: str) -> Iterator[StoreProcess]:
    with closing(StoreProcess(url)) as store:
        yield store


def objects(url: str) -> dict[str, bytes]:
    with store_at(url) as store:
        read = {name: store.read(name) for name in store.names()}
        return {name: bytes(found.data) for name, found in read.items() if found}


def put(url: str, name: str, data: bytes) -> None:
    with store_at(url) as store:
        assert store.replace(name, memoryview(data), store.generation(name))


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.bin")}


def append(path: Path, data: bytes) -> None:
    """Lets a file grow, as a save does."""
    path.write_bytes(path.read_bytes() + data)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "caches"
    directory.mkdir()
    return directory


def test_two_directories_share_two_kinds(
    directory: Path, tmp_path: Path, url: str
) -> None:
    (directory / A).write_bytes(b"a")
    (directory / B).write_bytes(b"bb")
    (directory / "notes.bin").write_bytes(b"no cache")
    (directory / C).touch()
    pushed = [f"pushed {stem(B)}: 2 bytes", f"pushed {stem(A)}: 1 bytes"]
    assert run("push", directory, url) == (0, pushed, "")
    assert objects(url) == {A: b"a", B: b"bb"}
    assert run("push", directory, url) == (0, [in_step(B), in_step(A)], "")
    there = tmp_path / "there"
    pulled = [line.replace("pushed", "pulled") for line in pushed]
    assert run("pull", url, there) == (0, pulled, "")
    assert files(there) == {A: b"a", B: b"bb"}
    assert run("pull", url, there) == (0, [in_step(B), in_step(A)], "")
    append(there / A, b"more")
    pushed = [f"pushed {stem(A)}: 5 bytes", in_step(B)]
    assert run("push", there, url) == (0, pushed, "")
    assert objects(url) == {A: b"amore", B: b"bb"}
    pulled = [f"pulled {stem(A)}: 5 bytes", in_step(B)]
    assert run("sync", directory, url) == (0, pulled, "")
    assert files(directory)[A] == b"amore"


def test_nothing_is_to_be_transferred(
    directory: Path, tmp_path: Path, url: str
) -> None:
    nothing = (0, ["There is nothing to transfer"], "")
    assert run("push", directory, url) == nothing
    assert run("sync", directory, url) == nothing
    put(url, "strange", b"name")
    put(url, "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.0.bin.lock", b"name")
    assert run("pull", url, tmp_path / "there") == nothing
    assert not list((tmp_path / "there").iterdir())


def test_what_is_to_be_merged_stays_and_the_rest_goes_on(
    directory: Path, url: str
) -> None:
    for name in (A, B):
        put(url, name, b"theirs")
    (directory / A).write_bytes(b"ours is longer")
    status, lines, errors = run("pull", url, directory)
    assert (status, errors) == (3, "")
    assert [line[:50] for line in lines] == [
        f"pulled {stem(B)}: 6 bytes"[:50],
        f"NOT MERGED {stem(A)}: "[:50],
    ]
    assert "on a machine with this GPU" in lines[1]
    assert files(directory) == {A: b"ours is longer", B: b"theirs"}
    (directory / C).write_bytes(b"new")
    status, lines, errors = run("push", directory, url)
    assert (status, errors) == (3, "")
    assert lines[0] == f"pushed {stem(C)}: 3 bytes"
    assert lines[1].startswith(f"NOT MERGED {stem(A)}: ")
    assert lines[2:] == [in_step(B)]
    status, lines, errors = run("sync", directory, url)
    assert (status, errors, len(lines)) == (3, "", 3)
    assert objects(url) == {A: b"theirs", B: b"theirs", C: b"new"}
    assert files(directory)[A] == b"ours is longer"


def test_an_object_that_moved_on_is_not_replaced(
    directory: Path, tmp_path: Path, url: str
) -> None:
    put(url, A, b"1")
    other = tmp_path / "other"
    for pulled in (directory, other):
        assert run("pull", url, pulled)[0] == 0
        append(pulled / A, pulled.name.encode())
    assert run("push", other, url)[0] == 0
    assert run("push", directory, url)[0] == 3
    assert objects(url) == {A: b"1other"}
    assert files(directory) == {A: b"1caches"}


def test_a_machine_pulls_its_own_kind(directory: Path, url: str) -> None:
    for name in (A, B, OTHER):
        put(url, name, name.encode())
    pulled = [f"pulled {stem(A)}: {len(A)} bytes"]
    assert run("pull", url, directory, gpu=GPU) == (0, pulled, "")
    assert files(directory) == {A: A.encode()}
    assert run("pull", url, directory, gpu=GPU) == (0, [in_step(A)], "")
    status, lines, _ = run("pull", url, directory, "--all", gpu=GPU)
    assert (status, len(lines)) == (0, 3)
    assert files(directory) == objects(url)


def test_a_machine_with_a_new_driver_starts_with_the_newest_older_one(
    directory: Path, url: str
) -> None:
    for name in (B, C):
        put(url, name, name.encode())
    pulled = [f"pulled {stem(B)}: {len(B)} bytes"]
    new = {"FAKE_CUDA_DRIVER": "12100"}
    assert run("pull", url, directory, gpu=GPU, **new) == (0, pulled, "")
    assert files(directory) == {B: B.encode()}
    assert run("pull", url, directory, gpu=GPU) == (
        0,
        [f"{stem(A)} is not there yet"],
        "",
    )


def test_mode_read_never_writes(directory: Path, url: str) -> None:
    (directory / A).write_bytes(b"a")
    put(url, B, b"b")
    status, lines, errors = run("push", directory, f"{url}?mode=read")
    assert (status, lines) == (2, [])
    assert "has mode=read, expected a URL that may be written" in errors
    pulled = [f"pulled {stem(B)}: 1 bytes"]
    assert run("sync", directory, f"{url}?mode=read") == (0, pulled, "")
    assert objects(url) == {B: b"b"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pull", "caches", "s3://b/p/"], "'caches', expected a URL such as s3://"),
        (["pull", "s3://b/p/", "s3://b/q/"], "'s3://b/q/', expected a directory"),
        (["push", "", "s3://b/p/"], "'', expected a directory"),
        (["sync", "caches", "http://b/p/"], "'http://b/p/', expected one of s3://"),
        (["sync", "caches", "s3://b/p/?mode=x"], "'mode' with the value 'x'"),
        (["pull", "file:///d", "caches"], "Use the directory '/d/' itself"),
        (["push", "caches", "file://h/d"], "expected file:///DIRECTORY/"),
        (["pull", "s3://b/", "caches", "--timeout", "-1"], "a number of seconds"),
        (["pull", "s3://b/", "caches", "--timeout", "0"], "'0', expected a number"),
        (["push", "caches", "s3://b/", "--all"], "--all"),
        (["pull", "s3://b/"], "DIR"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_missing_bucket_is_an_error(directory: Path, url: str) -> None:
    missing = "s3://no-bucket/p/"
    (directory / A).write_bytes(b"a")
    for arguments in (("pull", missing, directory), ("push", directory, missing)):
        status, lines, errors = run(*arguments)
        assert (status, lines) == (1, [])
        assert "the bucket does not exist" in errors
        assert missing in errors
        assert errors.count("\n") == 1
    assert files(directory) == {A: b"a"}


@pytest.mark.parametrize("verb", ["pull", "push"])
def test_a_missing_directory_is_an_error(verb: str, tmp_path: Path, url: str) -> None:
    missing = tmp_path / "no" / "directory"
    arguments = (url, missing) if verb == "pull" else (missing, url)
    expected = f"Can't use the directory '{missing}': No such file or directory\n"
    assert run(verb, *arguments) == (1, [], expected)


def test_an_error_of_one_kind_does_not_keep_the_others(
    directory: Path, url: str
) -> None:
    put(url, A, b"a")
    put(url, B, b"b")
    (directory / B).mkdir()
    status, lines, errors = run("pull", url, directory)
    assert (status, lines) == (1, [f"pulled {stem(A)}: 1 bytes"])
    assert f"'{directory / B}' is not a regular file" in errors
    (directory / B).rmdir()
    (directory / B).write_bytes(b"ours")
    (directory / B).chmod(0o666)
    append(directory / A, b"more")
    status, lines, errors = run("push", directory, url)
    assert (status, lines) == (1, [f"pushed {stem(A)}: 5 bytes"])
    assert "can't be trusted" in errors
    assert objects(url) == {A: b"amore", B: b"b"}


def test_a_refused_connection_is_an_error(directory: Path, url: str) -> None:
    (directory / A).write_bytes(b"a")
    nobody = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    status, lines, errors = run("push", directory, url, **nobody)
    assert (status, lines) == (1, [])
    assert errors == f"Can't push {stem(A)}: connection refused ('{url}')\n"
    assert files(directory) == {A: b"a"}


def test_a_store_that_hangs_is_an_error_after_the_timeout(
    directory: Path, url: str, server: MotoServer
) -> None:
    (directory / A).write_bytes(b"a")
    with FaultyProxy(server.port) as proxy:
        proxy.hang()
        start = time.monotonic()
        status, lines, errors = run(
            *("sync", directory, url, "--timeout", "2"),
            **environment_of_client(proxy.port),
        )
    assert time.monotonic() - start < PATIENCE
    assert (status, lines) == (1, [])
    assert "no answer within" in errors
    assert files(directory) == {A: b"a"}


def test_an_interrupt_ends_it_at_once(
    directory: Path, url: str, server: MotoServer
) -> None:
    with FaultyProxy(server.port) as proxy:
        proxy.hang()
        process = subprocess.Popen(
            command("pull", url, directory),
            env=environment(**environment_of_client(proxy.port)),
            stderr=subprocess.PIPE,
        )
        wait_until(lambda: proxy.requests.total() > 0)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (130, b"")


def test_without_the_library_it_says_what_to_install(directory: Path, url: str) -> None:
    code = "import sys; sys.modules['obstore'] = None; import torchtrt_cache.__main__"
    ended = subprocess.run(
        [
            *(sys.executable, "-c", f"{code} as m; sys.exit(m.main())"),
            *("push", str(directory), url),
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert ended.returncode == 1
    assert "pip install 'torch-tensorrt-rtx-runtime[fleet]'" in ended.stderr


def test_torch_is_not_imported(directory: Path, tmp_path: Path, url: str) -> None:
    put(url, A, b"a")
    (tmp_path / "torch.py").write_text("raise ImportError('torch is imported')")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    for gpu in (GPU, None):
        assert run("sync", directory, url, gpu=gpu, PYTHONPATH=path)[0] == 0
    assert files(directory) == {A: b"a"}


def test_a_directory_that_is_closed_is_an_error(directory: Path, url: str) -> None:
    put(url, A, b"a")
    put(url, B, b"bb")
    (directory / A).write_bytes(b"a")
    directory.chmod(0o555)
    child = Child(give_up_capabilities)
    try:
        status, lines, errors = child(run_here, "pull", url, str(directory))
    finally:
        child.close()
        directory.chmod(0o755)
    assert (status, lines) == (1, [])
    assert "Permission denied" in errors
    assert files(directory) == {A: b"a"}


def fill_disk(directory: Path) -> None:
    """Leaves little space in a directory that only this process sees."""
    enter_mount_namespace()
    mount("none", directory, "tmpfs", 0, "size=64k")
    (directory / A).write_bytes(b"ours")


def test_a_full_disk_is_an_error_and_the_file_stays(directory: Path, url: str) -> None:
    put(url, A, b"ours" + bytes(200_000))
    put(url, B, b"b")
    put(url, C, bytes(200_000))
    child = Child(partial(fill_disk, directory))
    try:
        try:
            assert child(files, directory) == {A: b"ours"}
        except PermissionError:
            pytest.skip("this user can't make a mount namespace")
        assert child(run_here, "push", str(directory), url)[0] == 3
        status, lines, errors = child(run_here, "pull", url, str(directory))
        left = child(files, directory)
        names = child(os.listdir, directory)
    finally:
        child.close()
    assert status == 1
    assert lines[0] == f"pulled {stem(B)}: 1 bytes"
    assert lines[1].startswith(f"NOT MERGED {stem(A)}")
    assert os.strerror(errno.ENOSPC) in errors
    assert left == {A: b"ours", B: b"b"}
    assert not [name for name in names if name.endswith(".tmp")]


@pytest.mark.parametrize("verb", ["pull", "push", "sync"])
def test_help_says_what_it_does(verb: str) -> None:
    status, lines, errors = run(verb, "--help")
    assert (status, errors) == (0, "")
    text = "\n".join(lines)
    assert f"torchtrt-cache {verb} " in text
    assert "Exit status: " in text
    assert "--timeout SECONDS" in text
    assert all(len(line) <= 100 for line in lines)


def test_the_help_names_all_commands() -> None:
    status, lines, _ = run("--help")
    assert status == 0
    for verb in ("info", "prune", "pull", "push", "sync"):
        assert any(line.split()[:1] == [verb] for line in lines)


class Watch:
    """A process of `sync --watch`."""

    def __init__(self, *arguments: str | Path, **variables: str) -> None:
        self.process = subprocess.Popen(
            command("sync", *arguments, "--watch"),
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def end(self, *signals: signal.Signals) -> Outcome:
        for number in signals:
            self.process.send_signal(number)
        out, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out.splitlines(), errors


@pytest.mark.parametrize(
    "signals",
    [[signal.SIGTERM, signal.SIGTERM], [signal.SIGINT]],
    ids=["SIGTERM", "SIGINT"],
)
def test_watching_pushes_what_is_saved_and_the_rest_at_the_end(
    signals: list[signal.Signals], directory: Path, url: str
) -> None:
    (directory / A).write_bytes(b"1")
    with Watch(directory, url) as watch:
        assert watch.hear() == f"pushed {stem(A)}: 1 bytes"
        append(directory / A, b"2")
        assert watch.hear() == f"pushed {stem(A)}: 2 bytes"
        (directory / B).write_bytes(b"new")
        assert watch.hear() == f"pushed {stem(B)}: 3 bytes"
        append(directory / A, b"3")
        last = [f"pushed {stem(A)}: 3 bytes"]
        assert watch.end(*signals) == (0, last, "")
    assert objects(url) == {A: b"123", B: b"new"}


def test_watching_outlives_a_store_that_fails(
    directory: Path, url: str, server: MotoServer
) -> None:
    (directory / A).write_bytes(b"a")
    (directory / B).write_bytes(b"b")
    with FaultyProxy(server.port) as proxy:
        proxy.refuse()
        with Watch(directory, url, **environment_of_client(proxy.port)) as watch:
            assert watch.process.stderr is not None
            said = watch.process.stderr.readline()
            assert said == f"Can't list '{url}': connection refused\n"
            time.sleep(8)  # during this time both kinds fail for the same reason
            append(directory / A, b"more")
            proxy.heal()
            pushed = {watch.hear() for _ in range(2)}
            assert pushed == {
                f"pushed {stem(A)}: 5 bytes",
                f"pushed {stem(B)}: 1 bytes",
            }
            status, lines, errors = watch.end(signal.SIGTERM)
    assert (status, lines, errors) == (0, [], "")
    assert objects(url) == {A: b"amore", B: b"b"}


def test_watching_ends_in_time_while_the_store_hangs(
    directory: Path, url: str, server: MotoServer
) -> None:
    (directory / A).write_bytes(b"a")
    with FaultyProxy(server.port) as proxy:
        proxy.hang()
        with Watch(directory, url, **environment_of_client(proxy.port)) as watch:
            wait_until(lambda: proxy.requests.total() > 0)
            status, lines, errors = watch.end(signal.SIGTERM)
    assert (status, lines) == (1, [])
    assert "no answer within" in errors
    assert files(directory) == {A: b"a"}
