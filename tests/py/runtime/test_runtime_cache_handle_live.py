"""A handle that an engine has made live, on the simulated device, over both runtimes."""

from __future__ import annotations

import copy
import pickle
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests.py.runtime.runtime_cache_testing import (
    KINDS,
    Log,
    handle_of,
    names_in,
    to_bytes,
    to_tensor,
)
from tests.util.simulation.simulated_device import installed_device, relu_plan
from torch_tensorrt.logging import info
from torch_tensorrt.runtime._engine.trt_engine import TRTEngine


@pytest.fixture(autouse=True)
def device() -> Iterator[Any]:
    with installed_device() as device:
        yield device


@pytest.fixture(params=KINDS)
def other_kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def engine_of(kind: str, plan: bytes) -> Any:
    if kind == "cpp":
        return torch.classes.tensorrt.Engine(to_tensor(plan), ["x"], ["y"])
    return TRTEngine(to_tensor(plan), ["x"], ["y"])


def run(kind: str, engine: Any) -> None:
    inputs = [torch.tensor([-1.0, 0.0, 1.0, 2.0])]
    if kind == "cpp":
        (y,) = torch.ops.tensorrt.execute_engine(inputs, engine)
    else:
        (y,) = engine.execute(inputs)
    assert y.tolist() == [0.0, 0.0, 1.0, 2.0]


def compile_into(kind: str, handle: Any, *names: str) -> Any:
    """Engines start with that cache, and compile what of `names` is not in it."""
    if kind == "cpp":
        handle.attach()  # no engine is the last one to use it, and saves it
    for name in names:
        engine = engine_of(
            kind, relu_plan(name, 1 if name else 0, 100 + 10 * len(name))
        )
        engine.set_runtime_settings("lazy", "disabled", handle)
        run(kind, engine)
    return handle


def live(kind: str, path: Path | str, *names: str) -> Any:
    """A live handle with kernels that no file has."""
    return compile_into(kind, handle_of(kind, path), *(names or [""]))


def save_as_other(kind: str, path: Path, *names: str) -> int:
    """As a process does that starts without any cache, and loses none."""
    written: int = live(kind, "", *names).save(str(path))
    return written


def kernels_in(data: bytes | torch.Tensor) -> list[str]:
    """The names in a simulated cache's bytes.

    tests/util/simulation/SimulatedRuntimeCache.h has the format.
    """
    rest = to_bytes(data) if isinstance(data, torch.Tensor) else data

    def take(size: int) -> bytes:
        nonlocal rest
        taken, rest = rest[:size], rest[size:]
        assert len(taken) == size
        return taken

    def text() -> str:
        (size,) = struct.unpack("=Q", take(8))
        return take(size).decode("latin-1")

    for _ in range(4):  # magic, version, GPU, operating system
        text()
    take(1 + 4)  # CUDA in graphics, driver
    (count,) = struct.unpack("=Q", take(8))
    names = []
    for _ in range(count):
        names.append(text().removesuffix("0"))
        text()
    return sorted(names)


def kernels_on_disk(path: Path) -> list[str]:
    return kernels_in(path.read_bytes())


def test_takes_the_pending_bytes(device: Any, kind: str, path: Path) -> None:
    save_as_other(kind, path, "a", "b")
    handle = handle_of(kind, path)
    handle.load()
    path.unlink()
    device.reset_counters()
    compile_into(kind, handle, "a", "b")
    assert device.counters() == {"compilations": 0, "cache_hits": 2}
    assert handle.has_cache()
    assert kernels_in(handle.serialize()) == ["a", "b"]


def test_loads_its_file_unless_it_has_bytes(kind: str, path: Path) -> None:
    save_as_other(kind, path, "a")
    assert kernels_in(live(kind, path).serialize()) == ["a"]
    given = handle_of(kind, path)
    given.deserialize(live(kind, "", "b").serialize())
    compile_into(kind, given, "")
    assert kernels_in(given.serialize()) == ["b"]
    given.save()
    assert kernels_on_disk(path) == ["a", "b"]


def test_stays_pending_if_there_can_be_no_cache(
    device: Any, kind: str, path: Path, log: Log
) -> None:
    save_as_other(kind, path, "a")
    handle = handle_of(kind, path)
    handle.load()
    device.fail("IRuntimeConfig::createRuntimeCache", 1)
    log.warnings()
    compile_into(kind, handle, "")
    (warning,) = log.warnings()
    assert f"could not create a runtime cache for '{path}'" in warning
    compile_into(kind, handle, "")
    assert kernels_in(handle.serialize()) == ["a"]


def test_a_cache_that_can_not_be_loaded_is_a_warning_and_cold(
    kind: str, path: Path, log: Log
) -> None:
    path.mkdir()
    handle = live(kind, path, "a")
    (warning,) = log.warnings()
    assert f"Can't load the runtime cache '{path}'" in warning
    assert warning.endswith("not a regular file. Kernels will be compiled anew")
    assert kernels_in(handle.serialize()) == ["a"]


def test_two_live_handles_on_one_file_lose_nothing(
    kind: str, other_kind: str, path: Path, log: Log
) -> None:
    ours, theirs = live(kind, path, "a"), live(other_kind, path, "b")
    assert ours.save() > 0
    assert theirs.save() > 0
    assert kernels_on_disk(path) == ["a", "b"]

    # What came from the file only is merged again, and kernels since then too.
    compile_into(kind, ours, "a", "d")
    compile_into(other_kind, theirs, "c")
    assert theirs.save() > 0
    assert ours.save() > 0
    assert kernels_on_disk(path) == ["a", "b", "c", "d"]
    assert log.warnings() == []


def test_a_cache_of_one_runtime_warms_the_other(
    device: Any, kind: str, other_kind: str, path: Path
) -> None:
    live(kind, path, "a", "b").save()
    device.reset_counters()
    live(other_kind, path, "a", "b")
    assert device.counters() == {"compilations": 0, "cache_hits": 2}


def test_merges_where_one_has_all_of_the_others(
    kind: str, path: Path, log: Log
) -> None:
    more = live(kind, path, "a", "b")
    save_as_other(kind, path, "a")
    assert more.save() > 0
    assert kernels_on_disk(path) == ["a", "b"]

    path.unlink()
    less = live(kind, path, "a")
    save_as_other(kind, path, "a", "b")
    assert less.save() == 0
    assert kernels_on_disk(path) == ["a", "b"]
    assert log.warnings() == []


@pytest.mark.parametrize("theirs", ["longer name", "x"])  # of another size and the same
def test_keeps_its_own_where_deserialize_replaces(
    device: Any, kind: str, path: Path, log: Log, theirs: str
) -> None:
    device.set_deserialize_mode("replaces")
    ours = live(kind, path, "a")
    save_as_other(kind, path, theirs)
    size = path.stat().st_size
    written = ours.save()
    assert log.warnings() == [
        f"WARNING: The {size} bytes that others saved to the runtime cache '{path}' could not be "
        f"merged and were replaced by {written} of this process's: TensorRT-RTX's deserialize "
        "replaces what a cache has"
    ]
    assert kernels_on_disk(path) == ["a"]


def test_keeps_what_it_loaded_where_deserialize_replaces(
    device: Any, kind: str, path: Path, log: Log
) -> None:
    device.set_deserialize_mode("replaces")
    save_as_other(kind, path, "a")
    live(kind, path, "b").save()
    assert kernels_on_disk(path) == ["a", "b"]
    assert log.warnings() == []


def test_tells_which_deserialize_it_met(
    device: Any, kind: str, path: Path, log: Log
) -> None:
    def told() -> list[str]:
        start = "INFO: TensorRT-RTX's deserialize"
        return [line for line in log.lines() if line.startswith(start)]

    ours = live(kind, path, "a")
    save_as_other(kind, path, "b")
    with info():
        ours.save()
        assert told() == ["INFO: TensorRT-RTX's deserialize adds to a runtime cache"]
        device.set_deserialize_mode("replaces")
        save_as_other(kind, path, "c")
        log.lines()
        ours.save()  # it has no new kernels
        assert told() == []
        compile_into(kind, ours, "d")
        log.lines()
        ours.save()
        assert told() == [
            "INFO: TensorRT-RTX's deserialize replaces what a runtime cache has"
        ]


def test_rejected_bytes_are_one_warning_and_a_cold_cache(
    device: Any, kind: str, path: Path, log: Log
) -> None:
    size = save_as_other(kind, path, "a")
    device.set_environment(tensorrt_rtx_version="1.7.0.0")
    ours = live(kind, path, "b")
    assert log.warnings() == [
        f"WARNING: TensorRT-RTX rejected the {size} bytes of the runtime cache '{path}': they are "
        "damaged, or come of another TensorRT-RTX version, GPU, operating system or CUDA driver. "
        "They are not used: kernels will be compiled anew"
    ]
    assert kernels_in(ours.serialize()) == ["b"]
    ours.save()
    assert log.warnings() == []
    assert kernels_on_disk(path) == ["b"]


def test_rejected_bytes_of_others_are_a_warning_and_replaced(
    kind: str, path: Path, log: Log
) -> None:
    ours = live(kind, path, "a")
    path.write_bytes(b"no cache at all")
    ours.save()
    (warning,) = log.warnings()
    assert f"rejected the 15 bytes of the runtime cache '{path}'" in warning
    assert warning.endswith("What this process compiled replaced them")
    assert kernels_on_disk(path) == ["a"]


def test_a_rejection_that_passes_costs_nobody_their_kernels(
    device: Any, kind: str, path: Path, log: Log
) -> None:
    save_as_other(kind, path, "a")
    device.fail("IRuntimeCache::deserialize", 1)
    ours = live(kind, path, "b")
    assert len(log.warnings()) == 1
    ours.save()
    assert kernels_on_disk(path) == ["a", "b"]


def test_without_kernels_it_writes_nothing(
    device: Any, kind: str, path: Path, log: Log
) -> None:
    ours = live(kind, path)
    assert ours.has_cache()
    with info():
        assert ours.save() == 0
    assert log.lines() == [f"INFO: There are no kernels for the runtime cache '{path}'"]
    assert names_in(path.parent) == set()

    device.set_deserialize_mode("replaces")
    save_as_other(kind, path, "a")
    assert ours.save() == 0
    assert kernels_on_disk(path) == ["a"]


def test_without_new_kernels_it_takes_no_lock(kind: str, path: Path, log: Log) -> None:
    save_as_other(kind, path, "a")
    ours = live(kind, path, "a")
    with FileLock(f"{path}.lock"), info():
        log.lines()
        assert ours.save() == 0
    assert log.lines() == [
        f"INFO: There are no new kernels for the runtime cache '{path}'"
    ]
    path.unlink()
    assert ours.save() > 0
    assert kernels_on_disk(path) == ["a"]


def test_failures_of_tensorrt_rtx(device: Any, kind: str, path: Path, log: Log) -> None:
    ours = live(kind, path, "a")
    for call in (ours.serialize, ours.save):
        device.fail("IRuntimeCache::serialize", 1)
        with pytest.raises(RuntimeError, match=f"serialize the runtime cache '{path}'"):
            call()
    save_as_other(kind, path, "b")
    device.fail("IRuntimeCache::reset", 1)
    ours.save()
    (warning,) = log.warnings()
    assert warning.endswith("TensorRT-RTX failed to deserialize or serialize them")
    assert kernels_on_disk(path) == ["a"]


def test_not_knowing_how_an_empty_cache_looks_it_writes_one(
    device: Any, kind: str, path: Path
) -> None:
    device.fail("IRuntimeCache::serialize", 1)
    ours = live(kind, path)
    assert ours.save() > 0
    assert kernels_on_disk(path) == []


def test_takes_bytes_while_live(device: Any, kind: str, path: Path, log: Log) -> None:
    ours = live(kind, path, "a")
    ours.deserialize(live(kind, "", "b").serialize())
    assert kernels_in(ours.serialize()) == ["a", "b"]

    ours.deserialize(torch.zeros(7, dtype=torch.uint8))
    (warning,) = log.warnings()
    assert "rejected the 7 bytes of a runtime cache given to it" in warning
    with pytest.raises(RuntimeError, match="uint8 tensor on the CPU"):
        ours.deserialize(torch.zeros(7))
    assert kernels_in(ours.serialize()) == ["a", "b"]

    ours.save()
    ours.deserialize(to_tensor(b""))
    assert kernels_in(ours.serialize()) == []
    compile_into(kind, ours, "c")
    ours.save()
    assert kernels_on_disk(path) == ["a", "b", "c"]

    device.fail("IRuntimeCache::reset", 1)
    with pytest.raises(RuntimeError, match=f"clear the runtime cache '{path}'"):
        ours.deserialize(to_tensor(b""))


def test_loads_while_live(kind: str, path: Path, log: Log) -> None:
    ours = live(kind, path, "a")
    assert ours.load() == 0
    size = save_as_other(kind, path, "b")
    assert ours.load() == size
    assert kernels_in(ours.serialize()) == ["a", "b"]
    path.write_bytes(b"no cache")
    assert ours.load() == 0
    assert len(log.warnings()) == 1
    assert kernels_in(ours.serialize()) == ["a", "b"]


def test_what_deserialize_replaced_in_it_stays_on_disk(
    device: Any, kind: str, path: Path
) -> None:
    save_as_other(kind, path, "a")
    ours = live(kind, path, "a")
    theirs = live(kind, "", "b").serialize()
    device.set_deserialize_mode("replaces")
    ours.deserialize(theirs)
    device.set_deserialize_mode("adds")
    assert kernels_in(ours.serialize()) == ["b"]
    ours.save()
    assert kernels_on_disk(path) == ["a", "b"]


def test_what_was_replaced_in_it_before_it_was_live_stays_on_disk(
    kind: str, path: Path
) -> None:
    save_as_other(kind, path, "a")
    elsewhere = path.with_name("elsewhere.bin")
    save_as_other(kind, elsewhere, "b")

    given = handle_of(kind, path)
    given.load()
    given.deserialize(live(kind, elsewhere).serialize())
    compile_into(kind, given, "").save()
    assert kernels_on_disk(path) == ["a", "b"]

    save_as_other(kind, path, "c")
    loaded = handle_of(kind, path)
    loaded.load()
    loaded.load(str(elsewhere))
    compile_into(kind, loaded, "").save()
    assert kernels_on_disk(path) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "duplicate",
    [lambda handle: pickle.loads(pickle.dumps(handle)), copy.deepcopy],
    ids=["pickle", "deepcopy"],
)
def test_a_copy_is_pending_and_overwrites_nothing(
    kind: str, path: Path, log: Log, duplicate: Callable[[Any], Any]
) -> None:
    ours = live(kind, path, "a")
    other = duplicate(ours)
    assert (other.path, other.autosave) == (str(path), False)
    assert kernels_in(other.serialize()) == ["a"]
    save_as_other(kind, path, "b")
    assert other.save() == 0
    assert kernels_on_disk(path) == ["b"]
    compile_into(kind, other, "").save()
    assert kernels_on_disk(path) == ["a", "b"]
    assert log.warnings() == []


def test_bytes_it_handed_out_outlive_it(kind: str) -> None:
    handle = live(kind, "", "a")
    data = handle.serialize()
    del handle
    assert kernels_in(data) == ["a"]


def test_threads_use_it_while_kernels_compile(kind: str, path: Path) -> None:
    ours = live(kind, path, "a")
    done = threading.Event()
    errors: list[BaseException] = []

    def collect(function: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            try:
                function()
            except BaseException as error:
                errors.append(error)

        return call

    def use() -> None:
        while not done.is_set():
            ours.save()
            ours.load()
            pickle.dumps(ours)
            assert ours.has_cache()

    compiling = [
        threading.Thread(
            target=collect(
                partial(compile_into, kind, ours, *(f"{i}_{k}_" for k in range(20)))
            )
        )
        for i in range(2)
    ]
    using = threading.Thread(target=collect(use))
    for thread in (*compiling, using):
        thread.start()
    for thread in compiling:
        thread.join()
    done.set()
    using.join()
    assert errors == []
    ours.save()
    assert len(kernels_on_disk(path)) == 41


def test_threads_make_one_cache(device: Any, kind: str, path: Path) -> None:
    save_as_other(kind, path, "a")
    device.reset_counters()
    handle = handle_of(kind, path)
    threads = [
        threading.Thread(target=compile_into, args=(kind, handle, "a"))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert device.calls("IRuntimeCache::deserialize") == 1
    assert device.counters() == {"compilations": 0, "cache_hits": 8}
