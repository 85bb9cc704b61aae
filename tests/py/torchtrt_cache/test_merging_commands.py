"""torchtrt-cache pull, push and sync on a machine with a simulated GPU, which can merge kernels."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.py.runtime.fleet_testing import OBJECT
from tests.py.runtime.live_handles import kernels_in, kernels_on_disk, save_as_other
from tests.py.runtime.programs import Program, Programs
from tests.py.runtime.runtime_testing import uses_gpu
from tests.util.simulation.simulated_device import KIND, installed_device
from torchtrt_cache.store_process import StoreProcess

OTHER = OBJECT.replace("driver13.0", "driver12.9")
NAME = OBJECT.removesuffix(".bin")
COMMAND = """
from tests.py.runtime.fleet_testing import install_gpu
from torchtrt_cache.__main__ import main
install_gpu(gpu)
device.set_environment(gpu=gpu, os_family="linux")
device.set_deserialize_mode(mode)
sys.exit(main(arguments))
"""

pytestmark = pytest.mark.skipif(uses_gpu(), reason="simulates a GPU")


@pytest.fixture(scope="module")
def programs(server: object) -> Iterator[Programs]:
    """Programs with the environment of the server's clients."""
    programs = Programs()
    yield programs
    programs.close()


@pytest.fixture(autouse=True)
def device() -> Iterator[Any]:
    with installed_device() as device:
        device.set_environment(gpu=KIND.gpu, os_family="linux")
        yield device


@pytest.fixture
def store(url: str) -> Iterator[StoreProcess]:
    with closing(StoreProcess(url)) as store:
        yield store


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "caches"
    directory.mkdir()
    return directory


def start(programs: Programs, *arguments: str | Path, mode: str = "adds") -> Program:
    words = [str(word) for word in arguments]
    return programs.start(COMMAND, arguments=words, gpu=KIND.gpu, mode=mode)


def run(
    programs: Programs, *arguments: str | Path, mode: str = "adds"
) -> tuple[int, list[str], str]:
    status, out, errors = start(programs, *arguments, mode=mode).outcome
    return status, out.splitlines(), errors


def serialized(path: Path, *names: str) -> bytes:
    save_as_other("python", path, *names)
    data = path.read_bytes()
    path.unlink()
    return data


def put(store: StoreProcess, name: str, data: bytes) -> None:
    assert store.replace(name, memoryview(data), store.generation(name))


def kernels_at(store: StoreProcess) -> list[str]:
    contents = store.read(OBJECT)
    assert contents is not None
    return kernels_in(bytes(contents.data))


def test_a_pull_merges_and_a_push_brings_the_rest(
    programs: Programs, directory: Path, tmp_path: Path, url: str, store: StoreProcess
) -> None:
    put(store, OBJECT, serialized(tmp_path / "theirs", "a", "b"))
    save_as_other("python", directory / OBJECT, "b", "c")
    status, lines, errors = run(programs, "pull", url, directory)
    assert (status, errors) == (0, "")
    assert lines[0].startswith(f"pulled {NAME}: ")
    assert kernels_on_disk(directory / OBJECT) == ["a", "b", "c"]
    assert kernels_at(store) == ["a", "b"]
    status, lines, errors = run(programs, "push", directory, url)
    assert (status, errors) == (0, "")
    assert lines[0].startswith(f"pushed {NAME}: ")
    assert kernels_at(store) == ["a", "b", "c"]
    for arguments in (("pull", url, directory), ("push", directory, url)):
        assert run(programs, *arguments) == (0, [f"{NAME} is in step"], "")


def test_a_push_merges_with_an_object_that_moved_on(
    programs: Programs, directory: Path, tmp_path: Path, url: str, store: StoreProcess
) -> None:
    put(store, OBJECT, serialized(tmp_path / "theirs", "a"))
    assert run(programs, "sync", directory, url)[0] == 0
    save_as_other("python", directory / OBJECT, "b")
    put(store, OBJECT, serialized(tmp_path / "theirs", "a", "c"))
    status, lines, errors = run(programs, "push", directory, url)
    assert (status, errors) == (0, "")
    assert lines[0].startswith(f"pushed {NAME}: ")
    assert kernels_at(store) == ["a", "b", "c"]
    assert kernels_on_disk(directory / OBJECT) == ["a", "b", "c"]


def test_the_kind_of_another_machine_is_not_merged(
    programs: Programs, directory: Path, tmp_path: Path, url: str, store: StoreProcess
) -> None:
    for name in (OBJECT, OTHER):
        put(store, name, serialized(tmp_path / "theirs", "a"))
        (directory / name).write_bytes(serialized(tmp_path / "ours", "b", "c"))
    before = (directory / OTHER).read_bytes()
    status, lines, errors = run(programs, "pull", url, directory, "--all")
    assert (status, errors) == (3, "")
    assert lines[0].startswith(f"NOT MERGED {OTHER.removesuffix('.bin')}: ")
    assert lines[1].startswith(f"pulled {NAME}: ")
    assert (directory / OTHER).read_bytes() == before
    assert kernels_on_disk(directory / OBJECT) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("theirs", "mode", "reason"),
    [
        (b"garbage", "adds", "TensorRT-RTX rejected them"),
        (None, "replaces", "deserialize replaces what a cache has"),
    ],
    ids=["rejected", "replacing"],
)
def test_an_object_that_can_not_be_merged_stays(
    theirs: bytes | None,
    mode: str,
    reason: str,
    programs: Programs,
    directory: Path,
    tmp_path: Path,
    url: str,
    store: StoreProcess,
) -> None:
    theirs = theirs or serialized(tmp_path / "theirs", "a")
    put(store, OBJECT, theirs)
    save_as_other("python", directory / OBJECT, "b")
    ours = (directory / OBJECT).read_bytes()
    places: tuple[str | Path, str | Path] = (url, directory)
    for verb in ("push", "pull"):
        places = places[::-1]
        status, lines, errors = run(programs, verb, *places, mode=mode)
        assert (status, lines) == (1, [])
        assert errors.splitlines()[-1].startswith(f"Can't {verb} {NAME}: ")
        assert reason in errors
    status, _, errors = run(programs, "pull", *places, mode=mode)
    assert status == 1
    assert "neither has changed since" in errors
    contents = store.read(OBJECT)
    assert contents is not None
    assert bytes(contents.data) == theirs
    assert (directory / OBJECT).read_bytes() == ours


def test_watching_merges_what_others_push(
    programs: Programs, directory: Path, tmp_path: Path, url: str, store: StoreProcess
) -> None:
    save_as_other("python", directory / OBJECT, "a")
    with start(programs, "sync", directory, url, "--watch") as watch:
        assert watch.hear().startswith(f"pushed {NAME}: ")
        put(store, OBJECT, serialized(tmp_path / "theirs", "a", "b"))
        save_as_other("python", directory / OBJECT, "c")
        assert watch.hear().startswith(f"pushed {NAME}: ")
        assert kernels_at(store) == ["a", "b", "c"]
        save_as_other("python", directory / OBJECT, "d")
        watch.send(signal.SIGTERM)
        assert watch.wait() == 0
        assert watch.stderr == ""
    assert kernels_at(store) == ["a", "b", "c", "d"]
    assert kernels_on_disk(directory / OBJECT) == ["a", "b", "c", "d"]
