"""Merges without a live cache: they use the cache of an engine that is built for this purpose."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import tensorrt_rtx as trt
import torch

from tests.py.runtime.live_handles import kernels_in, live
from tests.py.runtime.runtime_testing import PATIENCE
from tests.util.simulation.simulated_device import (
    installed_device,
    simulated_engine_loader,
)
from torch_tensorrt.runtime._cache import merger
from torch_tensorrt.runtime._cache.live_runtime_cache import LiveRuntimeCache
from torch_tensorrt.runtime._cache.merger import Merger
from torch_tensorrt.runtime._cache.tensor_memory import memory_of
from torch_tensorrt.runtime._engine.engine_loader import (
    LoadedEngine,
    set_engine_loader,
)
from torchtrt_cache.kinds import RuntimeCacheKind, kind_named
from torchtrt_cache.transfer import CannotMergeError

CREATE_CACHE = "IRuntimeConfig::createRuntimeCache"


@pytest.fixture(autouse=True)
def device() -> Iterator[Any]:
    with installed_device() as device:
        yield device


@pytest.fixture
def kind(device: Any) -> RuntimeCacheKind:
    return RuntimeCacheKind(*device.kind())


def kernels(*names: str) -> memoryview:
    """A read-only serialized cache."""
    return memory_of(live("python", "", *names).serialize()).toreadonly()


def merged_kernels(merge: Merger, *caches: memoryview) -> list[str]:
    return kernels_in(bytes(merge(*caches)))


def test_has_the_kernels_of_both_and_compiles_none(
    device: Any, kind: RuntimeCacheKind
) -> None:
    theirs, ours = kernels("a", "b"), kernels("b", "c")
    device.reset_counters()
    merge = Merger(kind)
    assert merged_kernels(merge, theirs, ours) == ["a", "b", "c"]
    assert device.counters() == {"compilations": 0, "cache_hits": 0}
    assert device.calls("ICudaEngine::createExecutionContext") == 0


def test_is_as_large_as_theirs_if_ours_adds_nothing(kind: RuntimeCacheKind) -> None:
    theirs, ours = kernels("a", "b"), kernels("a")
    assert len(Merger(kind)(theirs, ours)) == len(theirs)


def test_makes_its_cache_once_and_at_the_first_call(
    device: Any, kind: RuntimeCacheKind
) -> None:
    caches = kernels("a"), kernels("b")
    device.reset_counters()
    merge = Merger(kind)
    assert device.calls("createInferRuntime") == 0
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(merged_kernels, merge, *caches) for _ in range(20)]
        assert all(r.result(PATIENCE) == ["a", "b"] for r in results)
    assert device.calls("createInferRuntime") == 1
    assert device.calls(CREATE_CACHE) == 2  # the cache and its scratch cache


def test_the_result_outlives_it(kind: RuntimeCacheKind) -> None:
    merged = Merger(kind)(kernels("a"), kernels("b"))
    assert kernels_in(bytes(merged)) == ["a", "b"]


def test_a_kind_known_by_its_name_alone_is_the_same(kind: RuntimeCacheKind) -> None:
    named = kind_named(kind.file_name())
    assert named is not None
    assert named != kind
    assert merged_kernels(Merger(named), kernels("a"), kernels("b")) == ["a", "b"]


def test_refuses_the_bytes_of_another_kind(device: Any, kind: RuntimeCacheKind) -> None:
    device.set_environment(gpu="Other GPU")
    theirs = kernels("a")
    device.set_environment()
    ours = kernels("b")
    merge = Merger(kind)
    with pytest.raises(CannotMergeError, match=r"^TensorRT-RTX rejected them$"):
        merge(theirs, ours)
    with pytest.raises(CannotMergeError, match=r"^TensorRT-RTX failed to deserialize"):
        merge(ours, theirs)
    assert merged_kernels(merge, ours, kernels("c")) == ["b", "c"]


def test_a_device_that_replaces_can_not_merge(
    device: Any, kind: RuntimeCacheKind
) -> None:
    device.set_deserialize_mode("replaces")
    with pytest.raises(CannotMergeError, match="deserialize replaces what a cache has"):
        Merger(kind)(kernels("a"), kernels("b"))


def test_needs_a_gpu_of_the_kind(kind: RuntimeCacheKind) -> None:
    other = replace(kind, gpu="Other GPU")
    with pytest.raises(RuntimeError) as failure:
        Merger(other)(kernels("a"), kernels("b"))
    assert str(failure.value) == (
        f"there is no usable GPU of the kind '{other.file_name()}' here"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_says_so_where_there_is_no_gpu(kind: RuntimeCacheKind) -> None:
    caches = kernels("a"), kernels("b")
    simulated = set_engine_loader(None)
    try:
        with pytest.raises(RuntimeError) as failure:
            Merger(kind)(*caches)
    finally:
        set_engine_loader(simulated)
    assert str(failure.value).startswith(
        f"there is no usable GPU of the kind '{kind.file_name()}' here: A TensorRT-RTX engine "
        "needs an NVIDIA GPU, and torch finds none on this machine"
    )


def test_takes_the_gpu_of_the_kind(
    kind: RuntimeCacheKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [replace(kind, gpu="Other GPU"), kind, kind]
    current = []

    def make_current(ordinal: int) -> AbstractContextManager[None]:
        current.append(ordinal)
        return nullcontext()

    caches = kernels("a"), kernels("b")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(kinds))
    monkeypatch.setattr(merger, "kind_of_device", lambda ordinal, _: kinds[ordinal])
    monkeypatch.setattr(torch.cuda, "device", make_current)
    assert merged_kernels(Merger(kind), *caches) == ["a", "b"]
    assert current == [1]


def test_needs_a_gpu_that_engines_can_be_built_for(kind: RuntimeCacheKind) -> None:
    with pytest.raises(RuntimeError) as failure:
        Merger(replace(kind, compute_capability=90))(kernels("a"), kernels("b"))
    assert str(failure.value).startswith(
        "The compute capability 9.0 is not one that an engine can be built for; TensorRT-RTX "
    )


def test_says_what_the_builder_said(
    kind: RuntimeCacheKind,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def configure(builder: Any, *_: Any) -> Any:
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.NONE, 0)
        return config

    caches = kernels("a"), kernels("b")
    capfd.readouterr()
    monkeypatch.setattr(merger, "configure", configure)
    with pytest.raises(RuntimeError) as failure:
        Merger(kind)(*caches)
    assert str(failure.value).startswith(
        "TensorRT-RTX can't build an engine to merge with: "
    )
    assert "Compute capability cannot be kNONE" in str(failure.value)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("createInferRuntime", "TensorRT-RTX could not be started"),
        ("IRuntime::deserializeCudaEngine", "could not load a plan"),
        ("ICudaEngine::createRuntimeConfig", "could not create the runtime config"),
        (CREATE_CACHE, "could not create a runtime cache"),
    ],
)
def test_a_failure_passes(
    device: Any, kind: RuntimeCacheKind, call: str, reason: str
) -> None:
    caches = kernels("a"), kernels("b")
    merge = Merger(kind)
    device.fail(call, 1)
    with pytest.raises(RuntimeError, match=reason) as failure:
        merge(*caches)
    assert failure.type is RuntimeError  # it does not count as a rejection
    assert merged_kernels(merge, *caches) == ["a", "b"]


def exit_status_of_child(work: Callable[[], None]) -> int:
    """Runs `work` in a child of fork() with its own device. Returns the child's exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        signal.alarm(PATIENCE)
        try:
            with installed_device():
                work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_each_child_of_a_fork_makes_its_own(kind: RuntimeCacheKind) -> None:
    caches = kernels("a"), kernels("b")
    used, unused = Merger(kind), Merger(kind)
    used(*caches)

    def merge_anew() -> None:
        nonlocal used, unused
        for merge in (used, unused):
            assert merged_kernels(merge, *caches) == ["a", "b"]
        # The simulated device aborts a process that uses or destroys inherited objects.
        del merge, used, unused

    assert exit_status_of_child(merge_anew) == 0
    assert merged_kernels(used, *caches) == ["a", "b"]


def test_a_child_does_not_wait_for_a_thread_of_its_parent(
    device: Any, kind: RuntimeCacheKind
) -> None:
    caches = kernels("a"), kernels("b")
    merge = Merger(kind)
    is_loading, may_load = threading.Event(), threading.Event()

    def load_late(plan: memoryview) -> LoadedEngine:
        is_loading.set()
        may_load.wait(PATIENCE)
        return simulated_engine_loader(device)(plan)

    def merge_anew() -> None:
        assert merged_kernels(merge, *caches) == ["a", "b"]

    set_engine_loader(load_late)  # undone by the fixture of the device
    with ThreadPoolExecutor(1) as pool:
        merged = pool.submit(merged_kernels, merge, *caches)
        assert is_loading.wait(PATIENCE)
        assert exit_status_of_child(merge_anew) == 0
        may_load.set()
        assert merged.result(PATIENCE) == ["a", "b"]


@pytest.mark.skipif(
    "FAKE_CUDA_DRIVER_LIBRARY" not in os.environ, reason="only Bazel builds the driver"
)
def test_invalidates_no_capture_of_another_thread(
    kind: RuntimeCacheKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Once it is loaded, dlopen() finds it by its name.
    driver = ctypes.CDLL(os.environ["FAKE_CUDA_DRIVER_LIBRARY"])

    def mode() -> int:
        value = ctypes.c_int(0)
        driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(value))
        found = value.value
        driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(value))
        return found

    modes = []

    def observed(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            modes.append(mode())
            return function(*arguments)

        return call

    caches = kernels("a"), kernels("b")
    for name in ("load_engine", "_create_cache"):
        monkeypatch.setattr(merger, name, observed(getattr(merger, name)))
    monkeypatch.setattr(LiveRuntimeCache, "merge", observed(LiveRuntimeCache.merge))
    assert merged_kernels(Merger(kind), *caches) == ["a", "b"]
    relaxed, usual = 2, 0
    assert modes == [relaxed] * 3
    assert mode() == usual
