"""A file shared by two kinds of machine: they do not replace each other's kernels forever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.py.runtime.live_handles import (
    compile_into,
    kernels_on_disk,
    live,
    save_as_other,
)
from tests.py.runtime.runtime_cache_testing import Log, names_in, to_bytes
from tests.util.simulation.simulated_device import installed_device
from torchtrt_cache.records import record_path_of

OTHER_GPU = "Another GPU"

pytestmark = pytest.mark.usefixtures("without_checkpoints")


@pytest.fixture(autouse=True)
def device() -> Iterator[Any]:
    with installed_device() as device:
        yield device


@pytest.fixture
def foreign(device: Any) -> bytes:
    """The bytes of a cache of another kind."""
    device.set_environment(gpu=OTHER_GPU)
    data = to_bytes(live("python", "", "theirs").serialize())
    device.set_environment()
    return data


def told_to_stop(path: Path, size: int) -> str:
    return (
        f"WARNING: The runtime cache '{path}' was replaced again by {size} bytes that TensorRT-RTX "
        "rejects, so this process no longer overwrites it: two kinds of machine (GPU, driver or "
        "TensorRT-RTX version) share the path. To serve both, use a directory as the path"
    )


def stopped(runtime: str, path: Path, foreign: bytes) -> Any:
    """A handle with the kernels a and b that has stopped overwriting another kind's file."""
    ours = live(runtime, path, "a")
    for name in ("", "b", "c"):
        compile_into(runtime, ours, name)
        assert (ours.save() == 0) == (name == "c")
        path.write_bytes(foreign)
    return ours


def test_what_was_saved_is_written_again_once(
    runtime: str, path: Path, foreign: bytes, log: Log
) -> None:
    ours = live(runtime, path, "a")
    ours.save()
    path.write_bytes(foreign)
    compile_into(runtime, ours, "b")
    assert ours.save() > 0
    (warning,) = log.warnings()
    assert f"rejected the {len(foreign)} bytes of the runtime cache '{path}'" in warning
    assert kernels_on_disk(path) == ["a", "b"]

    for name in "cd":
        path.write_bytes(foreign)
        compile_into(runtime, ours, name)
        assert ours.save() == 0
        assert path.read_bytes() == foreign
    assert log.warnings() == [told_to_stop(path, len(foreign))]


def test_what_was_there_before_the_first_save_does_not_count(
    runtime: str, path: Path, foreign: bytes, log: Log
) -> None:
    path.write_bytes(foreign)
    ours = live(runtime, path, "a")
    assert ours.save() > 0
    path.write_bytes(foreign)
    compile_into(runtime, ours, "b")
    assert ours.save() > 0
    assert kernels_on_disk(path) == ["a", "b"]
    assert len(log.warnings()) == 1

    path.write_bytes(foreign)
    compile_into(runtime, ours, "c")
    assert ours.save() == 0
    assert log.warnings() == [told_to_stop(path, len(foreign))]


def test_damage_counts_as_another_kind(
    runtime: str, path: Path, foreign: bytes, log: Log
) -> None:
    ours = live(runtime, path, "a")
    ours.save()
    path.write_bytes(b"damaged")
    compile_into(runtime, ours, "b")
    assert ours.save() > 0
    log.warnings()
    path.write_bytes(foreign)
    compile_into(runtime, ours, "c")
    assert ours.save() == 0
    assert log.warnings() == [told_to_stop(path, len(foreign))]


def test_saves_go_on_once_the_file_is_removed(
    runtime: str, path: Path, foreign: bytes
) -> None:
    ours = stopped(runtime, path, foreign)
    path.unlink()
    assert ours.save() > 0
    assert kernels_on_disk(path) == ["a", "b", "c"]


def test_saves_go_on_once_the_file_can_be_merged(
    runtime: str, other_runtime: str, path: Path, foreign: bytes, log: Log
) -> None:
    ours = stopped(runtime, path, foreign)
    path.unlink()
    save_as_other(other_runtime, path, "x")
    log.warnings()
    assert ours.save() > 0
    assert kernels_on_disk(path) == ["a", "b", "c", "x"]
    assert log.warnings() == []


def test_another_path_is_not_given_up(runtime: str, path: Path, foreign: bytes) -> None:
    ours = stopped(runtime, path, foreign)
    elsewhere = path.with_name("elsewhere.bin")
    assert ours.save(str(elsewhere)) > 0
    assert kernels_on_disk(elsewhere) == ["a", "b", "c"]


def test_two_kinds_come_to_rest(
    device: Any, runtime: str, other_runtime: str, path: Path, log: Log
) -> None:
    ours = live(runtime, path, "a")
    ours.save()
    device.set_environment(gpu=OTHER_GPU)
    theirs = live(other_runtime, path, "b")
    theirs.save()
    log.warnings()
    written = []
    for round in range(5):
        device.set_environment()
        compile_into(runtime, ours, f"ours {round} ")
        written.append(ours.save() > 0)
        device.set_environment(gpu=OTHER_GPU)
        compile_into(other_runtime, theirs, f"theirs {round} ")
        written.append(theirs.save() > 0)
    # Each overwrote the other's kernels once. Then ours gave up, and theirs stay.
    assert written == [True, True, False, True, False, True] + [False, True] * 2
    stops = [line for line in log.warnings() if "no longer overwrites it" in line]
    assert len(stops) == 1
    assert kernels_on_disk(path) == ["b", *(f"theirs {round} " for round in range(5))]


def test_a_file_in_a_directory_is_no_exception(
    runtime: str, tmp_path: Path, foreign: bytes, log: Log
) -> None:
    ours = live(runtime, tmp_path, "a")
    ours.save()
    (path,) = tmp_path.glob("*.bin")
    for name in "bcd":
        path.write_bytes(foreign)
        compile_into(runtime, ours, name)
        assert (ours.save() > 0) == (name == "b")
    assert path.read_bytes() == foreign
    assert log.warnings()[1:] == [told_to_stop(path, len(foreign))]
    assert names_in(tmp_path) - {f"{path.name}.merge.lock"} == {
        path.name,
        f"{path.name}.lock",
    }


def test_a_new_start_writes_again(runtime: str, path: Path, foreign: bytes) -> None:
    stopped(runtime, path, foreign)
    assert live(runtime, path, "x").save() > 0
    assert kernels_on_disk(path) == ["x"]


def test_a_file_without_its_old_kernels_has_no_record_of_transfers(
    runtime: str, path: Path, foreign: bytes
) -> None:
    """Otherwise a push would replace an object by a file that lacks its kernels."""
    record = Path(record_path_of(str(path)))
    record.touch()
    save_as_other(runtime, path, "x")
    ours = live(runtime, path, "a")
    ours.save()
    save_as_other(runtime, path, "y")
    compile_into(runtime, ours, "b")
    assert ours.save() > 0
    assert kernels_on_disk(path) == ["a", "b", "x", "y"]
    assert record.exists()

    path.write_bytes(foreign)
    compile_into(runtime, ours, "c")
    assert ours.save() > 0
    assert not record.exists()
