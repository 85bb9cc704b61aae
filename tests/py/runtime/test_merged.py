"""Merges of serialized caches in a live handle, which does not change, in both runtimes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
)
from tests.py.runtime.runtime_cache_testing import (
    copy_of,
    handle_of,
    statistics_of,
    to_tensor,
)
from tests.py.runtime.runtime_testing import PATIENCE
from tests.util.simulation.simulated_device import installed_device
from torch_tensorrt.runtime._cache.live_runtime_cache import LiveRuntimeCache
from torchtrt_cache.kinds import RuntimeCacheKind


@pytest.fixture(autouse=True)
def device() -> Iterator[Any]:
    with installed_device() as device:
        yield device


@pytest.fixture
def name(device: Any) -> str:
    """The file name of the device's kind."""
    return file_name_of(device)


def file_name_of(device: Any) -> str:
    return RuntimeCacheKind(*device.kind()).file_name()


def kernels(*names: str) -> torch.Tensor:
    """A serialized cache."""
    data: torch.Tensor = live("python", "", *names).serialize()
    return data


def test_has_the_kernels_of_both_alone(runtime: str, path: Path, name: str) -> None:
    handle = live(runtime, path, "a")
    merged = handle.merged(kernels("b", "c"), kernels("c", "d"), name)
    assert kernels_in(merged) == ["b", "c", "d"]
    assert merged.dtype == torch.uint8
    assert merged.dim() == 1


def test_is_as_large_as_theirs_if_ours_adds_nothing(runtime: str, name: str) -> None:
    handle = live(runtime, "", "a")
    theirs = kernels("b", "c")
    assert handle.merged(theirs, kernels("b"), name).numel() == theirs.numel()
    assert handle.merged(theirs, theirs, name).numel() == theirs.numel()
    merged = handle.merged(kernels("b"), theirs, name)
    assert kernels_in(merged) == ["b", "c"]


def test_changes_nothing(runtime: str, path: Path, name: str) -> None:
    handle = live(runtime, path, "a")
    handle.save()
    before = statistics_of(handle)
    theirs, ours = kernels("b"), kernels("c")
    copies = theirs.clone(), ours.clone()
    handle.merged(theirs, ours, name)
    assert kernels_in(handle.serialize()) == ["a"]
    assert statistics_of(handle) == before
    assert handle.save() == 0
    assert torch.equal(theirs, copies[0])
    assert torch.equal(ours, copies[1])


def test_takes_strided_tensors(runtime: str, name: str) -> None:
    handle = live(runtime, "")
    theirs = kernels("a").repeat_interleave(2)[::2]
    assert kernels_in(handle.merged(theirs, kernels("b"), name)) == ["a", "b"]


def test_the_bytes_outlive_the_handle(runtime: str, name: str) -> None:
    merged = live(runtime, "").merged(kernels("a"), kernels("b"), name)
    assert kernels_in(merged) == ["a", "b"]


@pytest.mark.parametrize("damaged", [b"no cache", b""])
def test_rejected_bytes_are_an_error(
    runtime: str, path: Path, name: str, damaged: bytes
) -> None:
    handle = live(runtime, path, "a")
    ours = kernels("b")
    size = ours.numel()
    with pytest.raises(
        RuntimeError,
        match=f"Can't merge runtime caches of {len(damaged)} and {size} bytes of the kind "
        f"'{name}': TensorRT-RTX rejected them",
    ):
        handle.merged(to_tensor(damaged), ours, name)
    with pytest.raises(
        RuntimeError,
        match=f"caches of {size} and {len(damaged)} bytes .* failed to deserialize",
    ):
        handle.merged(ours, to_tensor(damaged), name)
    assert kernels_in(handle.merged(ours, kernels("c"), name)) == ["b", "c"]


def test_bytes_of_another_kind_are_rejected(
    device: Any, runtime: str, name: str
) -> None:
    handle = live(runtime, "", "a")
    device.set_environment(gpu="Other GPU")
    theirs = kernels("b")
    device.set_environment()
    with pytest.raises(RuntimeError, match="TensorRT-RTX rejected them"):
        handle.merged(theirs, kernels("c"), name)


def test_a_device_that_replaces_can_not_merge(
    device: Any, runtime: str, name: str
) -> None:
    handle = live(runtime, "", "a")
    device.set_deserialize_mode("replaces")
    with pytest.raises(RuntimeError, match="deserialize replaces what a cache has"):
        handle.merged(kernels("b"), kernels("c"), name)
    assert kernels_in(handle.serialize()) == ["a"]


def test_a_pending_handle_has_nothing_to_merge_in(
    runtime: str, path: Path, name: str
) -> None:
    pending = copy_of(live(runtime, path, "a"))
    for handle in (pending, handle_of(runtime, path)):
        with pytest.raises(
            RuntimeError,
            match=f"The runtime cache '{path}' is not in use on a device of the kind '{name}'",
        ):
            handle.merged(kernels("b"), kernels("c"), name)


def test_a_kind_that_is_not_in_use_is_an_error(runtime: str, name: str) -> None:
    other = name.replace("simulated", "other")
    with pytest.raises(RuntimeError, match=f"on a device of the kind '{other}'"):
        live(runtime, "", "a").merged(kernels("b"), kernels("c"), other)


def test_each_kind_is_merged_on_a_device_of_its_own(
    runtime: str, tmp_path: Path, name: str
) -> None:
    handle = live(runtime, f"{tmp_path}/", "a")
    ours = kernels("b"), kernels("c")
    with installed_device(is_second=True) as second:
        second.set_environment(gpu="Other GPU")
        compile_into(runtime, handle, "d")
        other = file_name_of(second)
        theirs = kernels("e"), kernels("f")
        assert kernels_in(handle.merged(*theirs, other)) == ["e", "f"]
        assert kernels_in(handle.merged(*ours, name)) == ["b", "c"]
        for swapped in ((*ours, other), (*theirs, name)):
            with pytest.raises(RuntimeError, match="TensorRT-RTX rejected them"):
                handle.merged(*swapped)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(3),
        torch.zeros(2, 3, dtype=torch.uint8),
        torch.zeros(3, dtype=torch.uint8, device="meta"),
        torch.zeros(3, dtype=torch.uint8).to_sparse(),
    ],
    ids=["float32", "matrix", "meta", "sparse"],
)
def test_refuses_other_tensors(runtime: str, name: str, wrong: torch.Tensor) -> None:
    handle = live(runtime, "")
    ours = kernels("a")
    for pair in ((wrong, ours), (ours, wrong)):
        with pytest.raises(
            RuntimeError, match="one-dimensional uint8 tensor on the CPU"
        ):
            handle.merged(*pair, name)


def test_merges_while_kernels_compile(
    device: Any, runtime: str, path: Path, name: str
) -> None:
    handle = live(runtime, path, "a")
    theirs, ours = kernels("x"), kernels("y")
    device.set_compile_time(0.01)
    names = [f"k{i}_" for i in range(20)]
    compiling = threading.Thread(target=compile_into, args=(runtime, handle, *names))
    compiling.start()
    merges = 0
    while compiling.is_alive():
        assert kernels_in(handle.merged(theirs, ours, name)) == ["x", "y"]
        merges += 1
    assert merges > 0
    assert kernels_in(handle.serialize()) == sorted(["a", *names])


def test_merges_while_a_save_waits_for_the_lock(
    runtime: str, path: Path, name: str
) -> None:
    handle = live(runtime, path, "a")
    theirs, ours = kernels("b"), kernels("c")
    with FileLock(f"{path}.lock"):
        saving = threading.Thread(target=handle.save)
        saving.start()
        time.sleep(0.2)
        assert kernels_in(handle.merged(theirs, ours, name)) == ["b", "c"]
        assert saving.is_alive()
    saving.join()
    assert kernels_on_disk(path) == ["a"]


def test_the_python_handle_can_be_used_during_a_merge(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = live("python", "", "a")
    merge = LiveRuntimeCache.merge
    meanwhile = []

    def merge_and_use(*arguments: Any) -> Any:
        with ThreadPoolExecutor(1) as other:
            used = other.submit(lambda: kernels_in(handle.serialize()))
            meanwhile.append(used.result(PATIENCE))
        return merge(*arguments)

    monkeypatch.setattr(LiveRuntimeCache, "merge", merge_and_use)
    assert kernels_in(handle.merged(kernels("b"), kernels("c"), name)) == ["b", "c"]
    assert meanwhile == [["a"]]
