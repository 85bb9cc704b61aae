"""Checkpoints: caches are saved in the background while their process runs."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests.py.runtime.runtime_cache_testing import Log
from tests.py.runtime.runtime_testing import (
    DEADLINE,
    PATIENCE,
    Plan,
    kernels_missing,
    make_cache,
    make_plan,
    run,
    start,
    start_and_save,
    uses_gpu,
    wait_for_kernels,
    wait_until,
)
from tests.util.simulation.simulated_device import relu_plan
from torch_tensorrt.runtime import RuntimeCache
from torch_tensorrt.runtime._cache.checkpoint_thread import checkpoint_thread

SIMULATED = pytest.mark.skipif(uses_gpu(), reason="counts calls of TensorRT-RTX")


def cache_of(module: torch.nn.Module) -> RuntimeCache:
    cache = getattr(module, "runtime_settings").runtime_cache
    assert isinstance(cache, RuntimeCache)
    return cache


def let_checkpoints_pass(runtime: str, folder: Path) -> None:
    """Waits until all checkpoints that were due at the call have been made."""
    witness = make_cache(runtime, folder / "witness.bin", autosave=True)
    modules = []
    for name in ("first", "second"):
        plan = make_plan(name)
        modules.append(start(runtime, plan, witness))
        wait_for_kernels(runtime, Path(witness.path), plan)


def wait_for_serialization(
    device: Any, action: Callable[[], None] = lambda: None
) -> None:
    """Waits until a serialization begins after the action."""
    before = device.calls("IRuntimeCache::serialize")
    action()
    wait_until(lambda: device.calls("IRuntimeCache::serialize") > before)


@pytest.mark.parametrize("own", [False, True], ids=["path", "own"])
def test_a_cache_is_saved_while_its_process_runs(
    runtime: str, path: Path, device: Any, log: Log, own: bool
) -> None:
    place = make_cache(runtime, path, autosave=True) if own else path
    modules = []
    for name in "ab":
        modules.append(start(runtime, make_plan(name), place))
        wait_for_kernels(runtime, path, make_plan(name))
    assert kernels_missing(runtime, path, make_plan("a")) == 0
    assert log.warnings() == []


@pytest.mark.parametrize(
    ("autosave", "checkpoints"),
    [(False, True), (True, False)],
    ids=["no-autosave", "no-checkpoints"],
)
def test_a_cache_has_checkpoints_from_when_they_are_turned_on(
    runtime: str, path: Path, device: Any, autosave: bool, checkpoints: bool
) -> None:
    cache = RuntimeCache(
        path,
        autosave,
        checkpoints=checkpoints,
        use_python_runtime=runtime == "python",
    )
    assert cache.checkpoints == checkpoints
    module = start(runtime, make_plan("a"), cache)
    let_checkpoints_pass(runtime, path.parent)
    assert not path.exists()
    cache.autosave_on_del = cache.checkpoints = True
    wait_for_kernels(runtime, path, make_plan("a"))
    del module


def test_a_path_cache_without_checkpoints_is_saved_at_its_end(
    runtime: str, path: Path, device: Any
) -> None:
    module = start(runtime, make_plan("a"), path)
    assert cache_of(module).checkpoints
    cache_of(module).checkpoints = False
    let_checkpoints_pass(runtime, path.parent)
    assert not path.exists()
    del module
    assert kernels_missing(runtime, path, make_plan("a")) == 0


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))],
)
def test_a_copy_has_checkpoints_if_the_original_has(
    runtime: str,
    path: Path,
    duplicate: Callable[[RuntimeCache], RuntimeCache],
    checkpoints: bool,
) -> None:
    cache = make_cache(runtime, path)
    assert cache.checkpoints
    cache.checkpoints = checkpoints
    assert duplicate(cache).checkpoints == checkpoints


def test_a_cache_without_a_path_has_none(
    runtime: str, tmp_path: Path, device: Any, log: Log
) -> None:
    module = start(runtime, make_plan("a"), make_cache(runtime, autosave=True))
    let_checkpoints_pass(runtime, tmp_path)
    assert log.warnings() == []
    del module


@SIMULATED
def test_an_inference_that_compiles_is_saved_meanwhile(
    runtime: str, path: Path, device: Any
) -> None:
    # The inference outlasts the pause after any earlier checkpoint.
    device.set_compile_time(0.5)
    plan = Plan(relu_plan("a", 200), ["x"], ["y"], (4,))
    modules: list[torch.nn.Module] = []
    starting = threading.Thread(
        target=lambda: modules.append(start(runtime, plan, path))
    )
    starting.start()
    try:
        wait_until(path.exists)
        assert starting.is_alive()
        assert 0 < kernels_missing(runtime, path, plan) < 200
    finally:
        device.set_compile_time(0.0)
        starting.join()
    wait_for_kernels(runtime, path, plan)


@SIMULATED
def test_an_inference_does_not_wait_for_a_checkpoint(
    runtime: str, path: Path, device: Any
) -> None:
    plans = [make_plan(name) for name in "ab"]
    module = start(runtime, plans[0], path)
    cache_of(module)._handle.lock_timeout = DEADLINE
    with FileLock(f"{path}.lock"):
        wait_for_serialization(device)  # the checkpoint takes no lock before that
        begin = time.monotonic()
        other = start(runtime, plans[1], path)
        run(module, plans[0])
        assert time.monotonic() - begin < PATIENCE
        assert not path.exists()
    wait_for_kernels(runtime, path, *plans)
    del other


@SIMULATED
def test_a_save_during_a_checkpoint_saves_everything(
    runtime: str, path: Path, device: Any, log: Log
) -> None:
    plans = [make_plan(name) for name in "ab"]
    modules = [start(runtime, plans[0], path)]
    cache = cache_of(modules[0])
    with FileLock(f"{path}.lock"):
        wait_for_serialization(device)
        modules.append(start(runtime, plans[1], path))
        saving = threading.Thread(target=cache.save)
        saving.start()
        time.sleep(0.1)
    saving.join(DEADLINE)
    assert kernels_missing(runtime, path, *plans) == 0
    assert log.warnings() == []


def test_a_checkpoint_during_a_save_is_no_failure(
    runtime: str, path: Path, device: Any, log: Log
) -> None:
    plans = [make_plan(name) for name in "ab"]
    modules = [start(runtime, plans[0], path)]
    with FileLock(f"{path}.lock"):
        saving = threading.Thread(target=cache_of(modules[0]).save)
        saving.start()
        time.sleep(1.5)  # by then a checkpoint is due
        modules.append(start(runtime, plans[1], path))
        assert saving.is_alive()
    saving.join(DEADLINE)
    wait_for_kernels(runtime, path, *plans)
    assert log.warnings() == []


def test_work_on_the_thread_may_ask_it_for_more() -> None:
    deadline = time.monotonic() + PATIENCE

    def work() -> threading.Thread:
        return checkpoint_thread.run(threading.current_thread, deadline)

    assert checkpoint_thread.run(work, deadline) is not threading.current_thread()


def test_a_checkpoint_merges(
    runtime: str, other_runtime: str, path: Path, device: Any, log: Log
) -> None:
    plans = [make_plan(name) for name in "ab"]
    module = start(runtime, plans[0], path)
    start_and_save(other_runtime, path, plans[1])
    wait_for_kernels(runtime, path, *plans)
    assert log.warnings() == []
    del module
