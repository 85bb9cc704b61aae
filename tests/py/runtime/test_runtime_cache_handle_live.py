"""A handle that an engine has made live, on the simulated device, in both runtimes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests.py.runtime.live_handles import (
    compile_into,
    kernels_in,
    kernels_on_disk,
    live,
    save_as_other,
)
from tests.py.runtime.runtime_cache_testing import (
    Log,
    copy_of,
    handle_of,
    names_in,
    to_tensor,
)
from tests.util.simulation.simulated_device import installed_device
from torch_tensorrt.logging import info

pytestmark = pytest.mark.usefixtures("without_checkpoints")


@pytest.fixture(autouse=True)
def device() -> Iterator[Any]:
    with installed_device() as device:
        yield device


def test_takes_the_pending_bytes(device: Any, runtime: str, path: Path) -> None:
    save_as_other(runtime, path, "a", "b")
    handle = handle_of(runtime, path)
    handle.load()
    path.unlink()
    device.reset_counters()
    compile_into(runtime, handle, "a", "b")
    assert device.counters() == {"compilations": 0, "cache_hits": 2}
    assert handle.has_cache()
    assert kernels_in(handle.serialize()) == ["a", "b"]


def test_loads_its_file_unless_it_has_bytes(runtime: str, path: Path) -> None:
    save_as_other(runtime, path, "a")
    assert kernels_in(live(runtime, path).serialize()) == ["a"]
    given = handle_of(runtime, path)
    given.deserialize(live(runtime, "", "b").serialize())
    compile_into(runtime, given, "")
    assert kernels_in(given.serialize()) == ["b"]
    given.save()
    assert kernels_on_disk(path) == ["a", "b"]


def test_stays_pending_if_there_can_be_no_cache(
    device: Any, runtime: str, path: Path, log: Log
) -> None:
    save_as_other(runtime, path, "a")
    handle = handle_of(runtime, path)
    handle.load()
    device.fail("IRuntimeConfig::createRuntimeCache", 1)
    log.warnings()
    compile_into(runtime, handle, "")
    (warning,) = log.warnings()
    assert f"could not create a runtime cache for '{path}'" in warning
    compile_into(runtime, handle, "")
    assert kernels_in(handle.serialize()) == ["a"]


def test_a_file_that_was_removed_and_made_anew_gets_the_kernels_again(
    runtime: str, path: Path, log: Log
) -> None:
    ours = live(runtime, path, "a", "b")
    ours.save()
    path.unlink()
    save_as_other(runtime, path, "a")
    assert ours.save() > 0
    assert kernels_on_disk(path) == ["a", "b"]
    assert ours.save() == 0
    assert log.warnings() == []


def test_a_cache_that_can_not_be_loaded_is_a_warning_and_cold(
    runtime: str, path: Path, log: Log
) -> None:
    os.mkfifo(path)
    handle = live(runtime, path, "a")
    (warning,) = log.warnings()
    assert f"Can't load the runtime cache '{path}'" in warning
    assert warning.endswith("not a regular file. Kernels will be compiled anew")
    assert kernels_in(handle.serialize()) == ["a"]


def test_two_live_handles_on_one_file_lose_nothing(
    runtime: str, other_runtime: str, path: Path, log: Log
) -> None:
    ours, theirs = live(runtime, path, "a"), live(other_runtime, path, "b")
    assert ours.save() > 0
    assert theirs.save() > 0
    assert kernels_on_disk(path) == ["a", "b"]

    # Kernels that came only from the file are merged again, and so are kernels compiled since.
    compile_into(runtime, ours, "a", "d")
    compile_into(other_runtime, theirs, "c")
    assert theirs.save() > 0
    assert ours.save() > 0
    assert kernels_on_disk(path) == ["a", "b", "c", "d"]
    assert log.warnings() == []


def test_merges_where_one_has_all_of_the_others(
    runtime: str, path: Path, log: Log
) -> None:
    more = live(runtime, path, "a", "b")
    save_as_other(runtime, path, "a")
    assert more.save() > 0
    assert kernels_on_disk(path) == ["a", "b"]

    path.unlink()
    less = live(runtime, path, "a")
    save_as_other(runtime, path, "a", "b")
    assert less.save() == 0
    assert kernels_on_disk(path) == ["a", "b"]
    assert log.warnings() == []


@pytest.mark.parametrize("theirs", ["longer name", "x"])  # of another and of equal size
def test_keeps_its_own_where_deserialize_replaces(
    device: Any, runtime: str, path: Path, log: Log, theirs: str
) -> None:
    device.set_deserialize_mode("replaces")
    ours = live(runtime, path, "a")
    save_as_other(runtime, path, theirs)
    size = path.stat().st_size
    written = ours.save()
    assert log.warnings() == [
        f"WARNING: The {size} bytes that others saved to the runtime cache '{path}' could not be "
        f"merged and were replaced by {written} bytes of this process: TensorRT-RTX's deserialize "
        "replaces what a cache has"
    ]
    assert kernels_on_disk(path) == ["a"]


def test_keeps_what_it_loaded_where_deserialize_replaces(
    device: Any, runtime: str, path: Path, log: Log
) -> None:
    device.set_deserialize_mode("replaces")
    save_as_other(runtime, path, "a")
    live(runtime, path, "b").save()
    assert kernels_on_disk(path) == ["a", "b"]
    assert log.warnings() == []


def test_tells_which_deserialize_it_met(
    device: Any, runtime: str, path: Path, log: Log
) -> None:
    def told() -> list[str]:
        start = "INFO: TensorRT-RTX's deserialize"
        return [line for line in log.lines() if line.startswith(start)]

    ours = live(runtime, path, "a")
    save_as_other(runtime, path, "b")
    with info():
        ours.save()
        assert told() == ["INFO: TensorRT-RTX's deserialize adds to a runtime cache"]
        device.set_deserialize_mode("replaces")
        save_as_other(runtime, path, "c", "e")
        log.lines()
        ours.save()  # the handle has no new kernels
        assert told() == []
        compile_into(runtime, ours, "d")
        log.lines()
        ours.save()
        assert told() == [
            "INFO: TensorRT-RTX's deserialize replaces what a runtime cache has"
        ]


def test_rejected_bytes_are_one_warning_and_a_cold_cache(
    device: Any, runtime: str, path: Path, log: Log
) -> None:
    size = save_as_other(runtime, path, "a")
    device.set_environment(tensorrt_rtx_version="99.0.0.0")
    ours = live(runtime, path, "b")
    assert log.warnings() == [
        f"WARNING: TensorRT-RTX rejected the {size} bytes of the runtime cache '{path}': they are "
        "damaged, or come from another TensorRT-RTX version, GPU, operating system or CUDA driver. "
        "They are not used: kernels will be compiled anew"
    ]
    assert kernels_in(ours.serialize()) == ["b"]
    ours.save()
    assert log.warnings() == []
    assert kernels_on_disk(path) == ["b"]


def test_rejected_bytes_of_others_are_a_warning_and_replaced(
    runtime: str, path: Path, log: Log
) -> None:
    ours = live(runtime, path, "a")
    path.write_bytes(b"no cache at all")
    ours.save()
    (warning,) = log.warnings()
    assert f"rejected the 15 bytes of the runtime cache '{path}'" in warning
    assert warning.endswith(
        "They were replaced by the kernels that this process compiled"
    )
    assert kernels_on_disk(path) == ["a"]


def test_a_rejection_that_passes_costs_nobody_their_kernels(
    device: Any, runtime: str, path: Path, log: Log
) -> None:
    save_as_other(runtime, path, "a")
    device.fail("IRuntimeCache::deserialize", 1)
    ours = live(runtime, path, "b")
    assert len(log.warnings()) == 1
    ours.save()
    assert kernels_on_disk(path) == ["a", "b"]


def test_without_kernels_it_writes_nothing(
    device: Any, runtime: str, path: Path, log: Log
) -> None:
    ours = live(runtime, path)
    assert ours.has_cache()
    with info():
        assert ours.save() == 0
    assert log.lines() == [f"INFO: There are no kernels for the runtime cache '{path}'"]
    assert names_in(path.parent) == set()

    device.set_deserialize_mode("replaces")
    save_as_other(runtime, path, "a")
    assert ours.save() == 0
    assert kernels_on_disk(path) == ["a"]


def test_without_new_kernels_it_takes_no_lock(
    runtime: str, path: Path, log: Log
) -> None:
    save_as_other(runtime, path, "a")
    ours = live(runtime, path, "a")
    with FileLock(f"{path}.lock"), info():
        log.lines()
        assert ours.save() == 0
    assert log.lines() == [
        f"INFO: There are no new kernels for the runtime cache '{path}'"
    ]
    path.unlink()
    assert ours.save() > 0
    assert kernels_on_disk(path) == ["a"]


def test_failures_of_tensorrt_rtx(
    device: Any, runtime: str, path: Path, log: Log
) -> None:
    ours = live(runtime, path, "a")
    for call in (ours.serialize, ours.save):
        device.fail("IRuntimeCache::serialize", 1)
        with pytest.raises(RuntimeError, match=f"serialize the runtime cache '{path}'"):
            call()
    save_as_other(runtime, path, "b")
    device.fail("IRuntimeCache::reset", 1)
    ours.save()
    (warning,) = log.warnings()
    assert warning.endswith("TensorRT-RTX failed to deserialize or serialize them")
    assert kernels_on_disk(path) == ["a"]


def test_not_knowing_how_an_empty_cache_looks_it_writes_one(
    device: Any, runtime: str, path: Path
) -> None:
    device.fail("IRuntimeCache::serialize", 1)
    ours = live(runtime, path)
    assert ours.save() > 0
    assert kernels_on_disk(path) == []


def test_takes_bytes_while_live(
    device: Any, runtime: str, path: Path, log: Log
) -> None:
    ours = live(runtime, path, "a")
    ours.deserialize(live(runtime, "", "b").serialize())
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
    compile_into(runtime, ours, "c")
    ours.save()
    assert kernels_on_disk(path) == ["a", "b", "c"]

    device.fail("IRuntimeCache::reset", 1)
    with pytest.raises(RuntimeError, match=f"clear the runtime cache '{path}'"):
        ours.deserialize(to_tensor(b""))


def test_loads_while_live(runtime: str, path: Path, log: Log) -> None:
    ours = live(runtime, path, "a")
    assert ours.load() == 0
    size = save_as_other(runtime, path, "b")
    assert ours.load() == size
    assert kernels_in(ours.serialize()) == ["a", "b"]
    path.write_bytes(b"no cache")
    assert ours.load() == 0
    assert len(log.warnings()) == 1
    assert kernels_in(ours.serialize()) == ["a", "b"]


def test_what_deserialize_replaced_in_it_stays_on_disk(
    device: Any, runtime: str, path: Path
) -> None:
    save_as_other(runtime, path, "a")
    ours = live(runtime, path, "a")
    theirs = live(runtime, "", "b").serialize()
    device.set_deserialize_mode("replaces")
    ours.deserialize(theirs)
    device.set_deserialize_mode("adds")
    assert kernels_in(ours.serialize()) == ["b"]
    ours.save()
    assert kernels_on_disk(path) == ["a", "b"]


def test_what_was_replaced_in_it_before_it_was_live_stays_on_disk(
    runtime: str, path: Path
) -> None:
    save_as_other(runtime, path, "a")
    elsewhere = path.with_name("elsewhere.bin")
    save_as_other(runtime, elsewhere, "b")

    given = handle_of(runtime, path)
    given.load()
    given.deserialize(live(runtime, elsewhere).serialize())
    compile_into(runtime, given, "").save()
    assert kernels_on_disk(path) == ["a", "b"]

    save_as_other(runtime, path, "c")
    loaded = handle_of(runtime, path)
    loaded.load()
    loaded.load(str(elsewhere))
    compile_into(runtime, loaded, "").save()
    assert kernels_on_disk(path) == ["a", "b", "c"]


def test_a_copy_is_pending_and_overwrites_nothing(
    runtime: str, path: Path, log: Log
) -> None:
    ours = live(runtime, path, "a")
    other = copy_of(ours)
    assert other.path == str(path)
    assert kernels_in(other.serialize()) == ["a"]
    save_as_other(runtime, path, "b")
    assert other.save() == 0
    assert kernels_on_disk(path) == ["b"]
    compile_into(runtime, other, "").save()
    assert kernels_on_disk(path) == ["a", "b"]
    assert log.warnings() == []


def test_bytes_it_handed_out_outlive_it(runtime: str) -> None:
    handle = live(runtime, "", "a")
    data = handle.serialize()
    del handle
    assert kernels_in(data) == ["a"]


def test_threads_use_it_while_kernels_compile(runtime: str, path: Path) -> None:
    ours = live(runtime, path, "a")
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
            copy_of(ours)
            assert ours.has_cache()

    compiling = [
        threading.Thread(
            target=collect(
                partial(compile_into, runtime, ours, *(f"{i}_{k}_" for k in range(20)))
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


def test_threads_make_one_cache(device: Any, runtime: str, path: Path) -> None:
    save_as_other(runtime, path, "a")
    device.reset_counters()
    handle = handle_of(runtime, path)
    threads = [
        threading.Thread(target=compile_into, args=(runtime, handle, "a"))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert device.calls("IRuntimeCache::deserialize") == 1
    assert device.counters() == {"compilations": 0, "cache_hits": 8}
