"""Machines of a fleet: processes on one object store, each with its own local tier."""

from __future__ import annotations

import ctypes
import hashlib
import os
from pathlib import Path
from typing import Any

from tests.py.runtime.live_handles import kernels_in
from tests.py.runtime.programs import Program, Programs
from tests.py.runtime.runtime_testing import KERNELS
from tests.util.servers.object_servers import environment_of_client
from tests.util.simulation.simulated_device import KIND
from torchtrt_cache.store_process import StoreProcess

BUCKET = "fleet"
OBJECT = KIND.file_name()
SUMMARY = "is not in step with this machine"  # part of the warning
# A slow test machine must not make a start continue without the object.
PATIENT = "?first_byte_timeout=200&start_timeout=200"

# The code with which every machine begins.
_BEGIN = """
from tests.py.runtime.fleet_testing import install_gpu
install_gpu(gpu)
os.environ.update(environment)
device.set_environment(gpu=gpu, os_family="linux")
from torch_tensorrt.runtime._runtime_cache import save_all_within
modules = []
def compile_(*names, place=url):
    modules.extend(start(runtime, make_plan(name), place) for name in names)
    return device.counters()["compilations"]
"""


def install_gpu(gpu: str) -> None:
    """Makes this process find a CUDA driver that reports a GPU."""
    os.environ.update(
        FAKE_CUDA_GPU=gpu, FAKE_CUDA_CAPABILITY="8.9", FAKE_CUDA_DRIVER="13000"
    )
    ctypes.CDLL(os.environ["FAKE_CUDA_DRIVER_LIBRARY"])  # dlopen() finds it by its name


def tier_of(directory: Path, url: str) -> Path:
    """The local tier of a machine whose user's caches are in `directory`."""
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return directory / "torch_tensorrt" / "remote" / name


def start_machine(
    programs: Programs,
    runtime: str,
    port: int,
    directory: Path,
    code: str,
    *,
    url: str,
    gpu: str = KIND.gpu,
    **names: Any,
) -> Program:
    """Starts a program on a machine whose user's caches are in `directory`.

    In addition to what `Programs.start` provides, the program has `compile_(*names)`, which starts
    engines on `url` and returns the number of kernels that the machine has compiled.
    """
    environment = {**environment_of_client(port), "XDG_CACHE_HOME": str(directory)}
    return programs.start(
        _BEGIN + code,
        runtime=runtime,
        environment=environment,
        url=url,
        gpu=gpu,
        **names,
    )


def kernels_of(store: StoreProcess, name: str = OBJECT) -> set[str]:
    """The kernels in an object. Empty if the object is missing."""
    contents = store.read(name)
    return set() if contents is None else set(kernels_in(bytes(contents.data)))


def all_of(*names: str) -> set[str]:
    """The kernels of the plans with these names (see `make_plan`)."""
    return {f"{name}{i}".removesuffix("0") for name in names for i in range(KERNELS)}
