"""Finds what the check requires of this machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = ["torch", "tensorrt_rtx", "filelock", "platformdirs", "numpy", "pytest"]
_TO_BUILD_ENGINES = ["onnx", "onnxscript"]


@dataclass
class Machine:
    """The results of `look`.

    Attributes:
        folders: Those of CMakeLists.txt, by the names of its variables.
        versions: The versions on which the results depend.
        missing: A line for each missing requirement.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def find(self, variable: str, file: str, candidates: list[Path], hint: str) -> None:
        """Finds the first candidate that has the file."""
        for folder in candidates:
            if (folder / file).exists():
                self.folders[variable] = folder
                return
        self.missing.append(f"{file}: {hint}")


def look(headers: Path, builds_engines: bool) -> Machine:
    """Looks at this machine and builds nothing. Takes some seconds, to import torch.

    Args:
        headers: The folder with TensorRT-RTX's C++ headers.
    """
    machine = Machine(versions={"python": platform.python_version()})
    for package in _PACKAGES + (_TO_BUILD_ENGINES if builds_engines else []):
        if find_spec(package):
            machine.versions[package] = metadata.version(package)
        else:
            machine.missing.append(f"{package} for {sys.executable}: pip install it")
    packages = [Path(folder) for folder in sys.path]
    cuda = [folder for p in packages for folder in p.glob("nvidia/cu*/include")]
    if home := os.environ.get("CUDA_HOME"):
        cuda.insert(0, Path(home, "include"))
    cuda.append(Path("/usr/local/cuda/include"))
    libraries = [folder / "tensorrt_rtx_libs" for folder in packages]
    library = "libtensorrt_rtx.so.1"
    machine.find("CUDA_INCLUDE", "crt/host_defines.h", cuda, "set CUDA_HOME")
    machine.find("TENSORRT_RTX_INCLUDE", "NvInfer.h", [headers], "give --headers")
    machine.find(
        "TENSORRT_RTX_LIBRARIES", library, libraries, "pip install tensorrt_rtx"
    )
    if "torch" in machine.versions:
        _look_with_torch(machine)
    return machine


def _look_with_torch(machine: Machine) -> None:
    import torch

    machine.folders["TORCH_DIR"] = Path(torch.__file__).parent
    machine.versions |= {"torch": torch.__version__, "CUDA": str(torch.version.cuda)}
    query = "nvidia-smi --query-gpu=driver_version --format=csv,noheader"
    driver = subprocess.getoutput(query)
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        machine.versions |= {
            "GPU": torch.cuda.get_device_name(),
            "compute capability": f"{major}.{minor}",
            "driver": driver.partition("\n")[0],
        }
    else:
        reason = f"torch.cuda.is_available() is false, and nvidia-smi says '{driver}'"
        machine.missing.append(f"an NVIDIA GPU: {reason}")
