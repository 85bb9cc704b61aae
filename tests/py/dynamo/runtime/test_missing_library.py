"""The Python runtime takes the place of a C++ library that is missing or untested."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorrt_rtx
import torch

import torch_tensorrt
from tests.util.simulation.simulated_device import relu_plan
from torch_tensorrt import _library
from torch_tensorrt._library import LIBRARY_PATH, TESTED_PAIRS
from torch_tensorrt._version import BUILT_FOR
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


def without_library(package: Path) -> str:
    """Returns what the package then warns of."""
    shutil.rmtree(package / "lib")
    return "lib/libtorchtrt_runtime.so can't be loaded with torch"


def with_library_for_another_pair(package: Path) -> str:
    """Returns what the package then warns of."""
    version = package / "_version.py"
    text = version.read_text().replace(str(BUILT_FOR), "('2.10', '1.5')")
    version.unlink()
    version.write_text(text)
    return (
        "was tested with torch 2.10 and tensorrt_rtx 1.5, but not with "
        f"torch {torch.__version__} and tensorrt_rtx {tensorrt_rtx.__version__}\n"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a copy of the package."""
    for source in torch_tensorrt.__path__:
        shutil.copytree(
            source,
            tmp_path / "torch_tensorrt",
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
    return tmp_path


@pytest.mark.parametrize("change", [without_library, with_library_for_another_pair])
def test_the_python_runtime_takes_its_place(
    folder: Path, change: Callable[[Path], str]
) -> None:
    reason = change(folder / "torch_tensorrt")
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
    assert done.stderr.count("The Python runtime takes the place of the C++ one") == 1
    assert reason in done.stderr


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    def pretend(of_torch: str, of_tensorrt_rtx: str) -> None:
        monkeypatch.setattr(torch, "__version__", of_torch)
        monkeypatch.setattr(tensorrt_rtx, "__version__", of_tensorrt_rtx)

    return pretend


def test_the_last_numbers_of_the_versions_do_not_matter(
    installed: Callable[[str, str], None],
) -> None:
    installed(f"{BUILT_FOR[0]}.99+cu999", f"{BUILT_FOR[1]}.99.999")
    assert _library._load() is None


def test_the_library_is_used_with_the_pairs_that_the_package_lists(
    installed: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_library, "BUILT_FOR", TESTED_PAIRS[0])
    for of_torch, of_tensorrt_rtx in TESTED_PAIRS:
        installed(f"{of_torch}.0+cu130", f"{of_tensorrt_rtx}.1.2")
        assert _library._load() is None
    installed("2.99.0+cu130", "1.99.1.2")
    error = str(_library._load())
    for of_torch, of_tensorrt_rtx in TESTED_PAIRS:
        assert f"torch {of_torch} and tensorrt_rtx {of_tensorrt_rtx}" in error
    assert error.endswith("not with torch 2.99.0+cu130 and tensorrt_rtx 1.99.1.2")


def test_a_library_built_for_an_unlisted_pair_is_used_with_that_alone(
    installed: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_library, "BUILT_FOR", ("2.11", "1.6"))
    installed("2.11.0", "1.6.1.120")
    assert _library._load() is None
    installed(f"{TESTED_PAIRS[0][0]}.0", f"{TESTED_PAIRS[0][1]}.1.2")
    assert "was tested with torch 2.11 and tensorrt_rtx 1.6, but" in str(
        _library._load()
    )
