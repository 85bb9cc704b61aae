"""When checkpoints are made, and when they stop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.py.runtime.runtime_testing import device as fresh_device
from tests.py.runtime.runtime_testing import (
    make_cache,
    make_plan,
    start,
    uses_gpu,
    wait_for_kernels,
    wait_until,
)
from tests.util.simulation.simulated_device import dynamic_relu_plan
from torch_tensorrt.dynamo.runtime import TorchTensorRTModule
from torch_tensorrt.runtime import RuntimeCache, RuntimeSettings

pytestmark = pytest.mark.skipif(uses_gpu(), reason="counts calls of TensorRT-RTX")


def dynamic_module(
    runtime: str, cache: RuntimeCache | Path, strategy: str
) -> TorchTensorRTModule:
    """A module with a kernel for each shape of up to eight elements."""
    return TorchTensorRTModule(
        dynamic_relu_plan([1], [4], [8], "dynamic", 1),
        ["x"],
        ["y"],
        runtime_settings=RuntimeSettings(
            dynamic_shapes_kernel_specialization_strategy=strategy, runtime_cache=cache
        ),
        use_python_runtime=runtime == "python",
    )


def has_kernels(runtime: str, path: Path, *shapes: int) -> bool:
    """Returns True if the file has the dynamic module's kernels for inputs of those sizes."""
    with fresh_device() as device:
        cache = make_cache(runtime, path)
        cache.load()
        module = dynamic_module(runtime, cache, "eager")
        for shape in shapes:
            module(torch.ones(shape))
        return bool(device.counters()["compilations"] == 0)


def checks(device: Any) -> int:
    number: int = device.calls("IRuntimeCache::serialize")
    return number


def wait_for_check(device: Any, after: int) -> None:
    wait_until(lambda: checks(device) > after)


def test_a_steady_process_rests_until_a_new_input_shape(
    runtime: str, path: Path, device: Any
) -> None:
    module = dynamic_module(runtime, path, "eager")
    module(torch.ones(2))
    device.reset_counters()
    wait_for_check(device, 2)  # one check finds kernels, and two find nothing
    assert has_kernels(runtime, path, 2)
    for _ in range(40):
        module(torch.ones(2))
        time.sleep(0.05)
    assert checks(device) == 3
    module(torch.ones(3))
    wait_for_check(device, 3)
    wait_until(lambda: has_kernels(runtime, path, 2, 3))


def test_a_shape_whose_first_inference_failed_is_still_new(
    runtime: str, path: Path, device: Any
) -> None:
    module = dynamic_module(runtime, path, "eager")
    module(torch.ones(2))
    device.reset_counters()
    device.fail("IExecutionContext::enqueueV3", 1)
    with pytest.raises(RuntimeError):
        module(torch.ones(3))
    wait_for_check(device, 2)  # after that check it rests
    module(torch.ones(3))
    wait_until(lambda: has_kernels(runtime, path, 2, 3))


def test_kernels_that_come_late_are_saved_though_nothing_else_happens(
    runtime: str, path: Path, device: Any
) -> None:
    device.set_compile_time(4.0)  # in this time, two checks find nothing
    module = dynamic_module(runtime, path, "lazy")
    module(torch.ones(2))
    wait_until(lambda: path.exists() and has_kernels(runtime, path, 2))
    del module


def test_kernels_that_come_late_are_saved_also_if_checkpoints_are_turned_on_after_the_inference(
    runtime: str, path: Path, device: Any
) -> None:
    device.set_compile_time(4.0)
    module = dynamic_module(runtime, path, "lazy")
    cache = module.runtime_settings.runtime_cache
    assert isinstance(cache, RuntimeCache)
    cache.checkpoints = False
    module(torch.ones(2))
    cache.checkpoints = True
    wait_until(lambda: path.exists() and has_kernels(runtime, path, 2))
    del module


def test_bytes_that_always_differ_are_not_written_for_ever(
    runtime: str, path: Path, device: Any
) -> None:
    cache = make_cache(runtime, path, autosave=True)
    modules = [start(runtime, make_plan("a"), cache)]
    wait_until(lambda: cache.statistics().checkpoints == 1)
    for check in range(13):
        # Changes the bytes of the cache, but not its kernels.
        device.set_environment(cuda_driver=13010 - 10 * (check % 2))
        before = checks(device)
        modules.append(start(runtime, make_plan("a"), cache))
        wait_for_check(device, before)
    written = cache.statistics().checkpoints
    assert 10 <= written <= 12
    device.set_environment()
    modules.append(start(runtime, make_plan("b"), cache))
    wait_for_kernels(runtime, path, make_plan("a"), make_plan("b"))
    wait_until(lambda: cache.statistics().checkpoints == written + 1)
