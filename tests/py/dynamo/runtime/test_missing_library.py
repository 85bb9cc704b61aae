"""The package without the C++ library: the Python runtime takes its place."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import torch_tensorrt
from tests.util.simulation.simulated_device import relu_plan
from torch_tensorrt._library import LIBRARY_PATH
from torch_tensorrt.dynamo.runtime import TorchTensorRTModule
from torch_tensorrt.runtime import RuntimeSettings

DEADLINE = 240  # seconds; only a guard against hanging

# The simulated device's library also contains the C++ runtime. The package does not know that.
CODE = """
import pickle, sys
import torch
import torch_tensorrt
from torch_tensorrt._library import library_error
from torch_tensorrt.dynamo.runtime import TorchTensorRTModule
from torch_tensorrt.runtime import RuntimeCache, RuntimeSettings

folder, library = sys.argv[1:]
assert torch_tensorrt.__file__.startswith(folder), torch_tensorrt.__file__
assert library_error() is not None
torch.ops.load_library(library)
from tests.util.simulation.simulated_device import installed_device, relu_plan

def run(module):
    assert not module.is_cpp_runtime()
    assert not module.runtime_settings.runtime_cache.is_cpp_runtime()
    assert module(torch.tensor([-1.0, 2.0, -3.0, 4.0])).tolist() == [0.0, 2.0, 0.0, 4.0]

plan = relu_plan(kernels=2)
with installed_device() as device:
    settings = RuntimeSettings(runtime_cache=folder + "/cache.bin")
    module = TorchTensorRTModule(plan, ["x"], ["y"], runtime_settings=settings)
    run(module)
    del module
    assert device.counters() == {"compilations": 2, "cache_hits": 0}
    with open(folder + "/module.pickle", "rb") as file:
        run(pickle.load(file))
    assert device.counters() == {"compilations": 2, "cache_hits": 2}

for make in (TorchTensorRTModule, lambda **kind: RuntimeCache(**kind)):
    try:
        make(use_python_runtime=False)
    except ImportError as error:
        assert folder in str(error)
    else:
        raise AssertionError("made without the library")
print("done")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a copy of the package without its library."""
    for source in torch_tensorrt.__path__:
        shutil.copytree(
            source,
            tmp_path / "torch_tensorrt",
            ignore=shutil.ignore_patterns("lib", "__pycache__"),
            dirs_exist_ok=True,
        )
    return tmp_path


def test_the_python_runtime_takes_its_place(folder: Path) -> None:
    settings = RuntimeSettings(runtime_cache=str(folder / "cache.bin"))
    module = TorchTensorRTModule(
        relu_plan(kernels=2), ["x"], ["y"], runtime_settings=settings
    )
    assert module.is_cpp_runtime()
    (folder / "module.pickle").write_bytes(pickle.dumps(module))
    done = subprocess.run(
        [sys.executable, "-c", CODE, folder, LIBRARY_PATH],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)]),
        },
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.stdout == "done\n", done.stderr
    assert "The Python runtime takes the place of the C++ one" in done.stderr
