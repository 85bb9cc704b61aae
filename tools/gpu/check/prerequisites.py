"""What the check needs of this machine: where it is, and what to do about what is missing."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).absolute().parents[3]

_VERSION_MACROS = ["TRT_MAJOR_RTX", "TRT_MINOR_RTX", "TRT_PATCH_RTX"]

_CPP20 = (
    "#include <span>\n#include <concepts>\nstatic_assert(__cplusplus >= 202002L);\n"
)


@dataclass(frozen=True)
class Options:
    """Places that the user named.

    Attributes:
        headers: TensorRT-RTX's C++ headers.
        googletest: GoogleTest's sources.
        pack: What pack.py packed, unpacked.
    """

    headers: Path | None = None
    googletest: Path | None = None
    pack: Path | None = None


@dataclass
class Machine:
    """What there is; a path is None, and a text empty, where it is missing.

    Attributes:
        missing: A line for each thing without which nothing can be built.
        skipped: A line for each thing without which a step is left out.
        gpu: The current GPU's name, compute capability and driver.
        no_gpu: Why there is none.
        versions: Of what the results depend on.
    """

    torch: Path | None = None
    cuda_include: Path | None = None
    tensorrt_rtx_include: Path | None = None
    tensorrt_rtx_library: Path | None = None
    googletest: Path | None = None
    cmake: str | None = None
    generator: str | None = None
    compiler: str = ""
    has_pytest: bool = False
    can_build_plans: bool = False
    gpu: str = ""
    no_gpu: str = ""
    missing: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def look(options: Options) -> Machine:
    """Looks at this machine. Takes the seconds that `import torch` takes, and builds nothing."""
    machine = Machine(versions={"python": sys.version.split()[0]})
    _find_torch(machine)
    _find_tensorrt_rtx(machine, options)
    _find_tools(machine)
    _find_packages(machine)
    _find_googletest(machine, options)
    _find_gpu(machine)
    return machine


def _find_torch(machine: Machine) -> None:
    try:
        import torch
    except ImportError as error:
        machine.missing.append(
            f"torch 2.11 or newer, built with CUDA, for {sys.executable}: {error}"
        )
        return
    machine.versions["torch"] = torch.__version__
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
        machine.missing.append(f"torch 2.11 or newer; this is {torch.__version__}")
    machine.torch = Path(torch.__file__).parent
    if torch.version.cuda is None:
        machine.missing.append(
            f"a torch built with CUDA; this is {torch.__version__} for the CPU alone"
        )
        return
    machine.versions["cuda"] = torch.version.cuda
    packages = machine.torch.parent
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [Path(home) / "include" for home in homes if home]
    major = torch.version.cuda.split(".")[0]
    # The folders of pip's packages, of which torch need not be a neighbour.
    candidates += [
        Path(folder) / f"nvidia/cu{major}/include"
        for folder in [packages, *map(Path, sys.path)]
    ]
    candidates += [
        Path(f"/usr/local/cuda-{torch.version.cuda}/include"),
        Path("/usr/local/cuda/include"),
    ]
    if nvcc := shutil.which("nvcc"):
        candidates.append(Path(nvcc).resolve().parents[1] / "include")
    machine.cuda_include = next(
        (
            folder
            for folder in candidates
            if (folder / "cuda_runtime_api.h").exists()
            and (folder / "crt/host_defines.h").exists()
        ),
        None,
    )
    if machine.cuda_include is None:
        machine.missing.append(
            f"CUDA {torch.version.cuda}'s headers, cuda_runtime_api.h and crt/host_defines.h: set "
            "CUDA_HOME, or pip install nvidia-cuda-runtime nvidia-cuda-crt"
        )


def _find_tensorrt_rtx(machine: Machine, options: Options) -> None:
    home = os.environ.get("TENSORRT_RTX_HOME")
    if home:
        libraries = Path(home) / "lib"
        where = f"TENSORRT_RTX_HOME={home} has no lib/libtensorrt_rtx.so"
    else:
        spec = importlib.util.find_spec("tensorrt_rtx_libs")
        origin = spec.origin if spec else None
        libraries = Path(origin or "nowhere/file").parent
        where = "pip install tensorrt_rtx, set TENSORRT_RTX_HOME, or give --pack"
    machine.tensorrt_rtx_library = next(
        (
            libraries / name
            for name in ("libtensorrt_rtx.so.1", "libtensorrt_rtx.so")
            if (libraries / name).exists()
        ),
        None,
    )
    if machine.tensorrt_rtx_library is None:
        machine.missing.append(f"TensorRT-RTX's library: {where}")
    if importlib.util.find_spec("tensorrt_rtx") is None:
        machine.missing.append(
            f"TensorRT-RTX's Python package tensorrt_rtx for {sys.executable}: pip install it, or "
            "give --pack"
        )
    version = next(
        filter(None, map(_version_of, ("tensorrt_rtx", "tensorrt_rtx_cu13_libs"))), ""
    )
    if version:
        machine.versions["tensorrt_rtx"] = version
    _find_headers(machine, options, home, version)


def _find_headers(
    machine: Machine, options: Options, home: str | None, version: str
) -> None:
    candidates = [options.headers] if options.headers else []
    if not candidates and home:
        candidates.append(Path(home) / "include")
    if not candidates and options.pack:
        candidates.append(options.pack / "include")
    # Where Bazel keeps repositories, if it was here.
    workspace = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", ROOT))
    output_base = (workspace / f"bazel-{workspace.name}").resolve().parents[1]
    candidates.append(output_base / "external/tensorrt_rtx/include")
    include = next((c for c in candidates if (c / "NvInferVersion.h").exists()), None)
    if include is None:
        machine.missing.append(
            "TensorRT-RTX's C++ headers, which pip's package lacks: give --headers DIR or --pack, "
            "or set TENSORRT_RTX_HOME"
        )
        return
    text = (include / "NvInferVersion.h").read_text()
    found = ".".join(
        match.group(1) if (match := re.search(rf"#define {macro} (\d+)", text)) else "?"
        for macro in _VERSION_MACROS
    )
    if version and not version.startswith(f"{found}."):
        machine.missing.append(
            f"headers of TensorRT-RTX {version}, which is the Python package's version; {include} "
            f"has those of {found}"
        )
        return
    machine.tensorrt_rtx_include = include


def _find_tools(machine: Machine) -> None:
    machine.compiler = os.environ.get("CXX", "g++")
    try:
        compiled = subprocess.run(
            [machine.compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"],
            input=_CPP20,
            capture_output=True,
            text=True,
        )
        if compiled.returncode:
            machine.missing.append(
                f"a C++20 compiler (set CXX); {machine.compiler} is none: "
                f"{(compiled.stderr.strip().splitlines() or ['no reason'])[0]}"
            )
        machine.versions["compiler"] = subprocess.run(
            [machine.compiler, "--version"], capture_output=True, text=True
        ).stdout.partition("\n")[0]
    except OSError as error:
        machine.missing.append(f"a C++20 compiler: g++, or what CXX names: {error}")
    machine.cmake = shutil.which("cmake")
    if machine.cmake is None:
        machine.missing.append("cmake 3.18 or newer: pip install cmake")
    if shutil.which("ninja"):
        machine.generator = "Ninja"
    elif shutil.which("make"):
        machine.generator = "Unix Makefiles"
    else:
        machine.missing.append("ninja or make: pip install ninja")


def _find_packages(machine: Machine) -> None:
    for package in ("filelock", "platformdirs", "numpy"):
        if importlib.util.find_spec(package) is None:
            machine.missing.append(f"the Python package {package}: pip install it")
    machine.has_pytest = importlib.util.find_spec("pytest") is not None
    if not machine.has_pytest:
        machine.skipped.append("the pytest suite: no pytest (pip install it)")
    absent = [p for p in ("onnx", "onnxscript") if importlib.util.find_spec(p) is None]
    machine.can_build_plans = not absent
    if absent:
        machine.skipped.append(
            f"what builds engines on this machine: no {' and no '.join(absent)} (pip install)"
        )
    for package in ("filelock", "onnx"):
        if version := _version_of(package):
            machine.versions[package] = version


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _find_googletest(machine: Machine, options: Options) -> None:
    candidates = [options.googletest] if options.googletest else []
    if options.pack:
        candidates.append(options.pack / "googletest")
    candidates.append(Path("/usr/src/googletest"))
    machine.googletest = next(
        (c for c in candidates if (c / "googlemock/CMakeLists.txt").exists()), None
    )
    if machine.googletest is None:
        machine.skipped.append(
            "the gtest suite: no googletest (give --googletest DIR or --pack, or apt-get install "
            "googletest)"
        )


def _find_gpu(machine: Machine) -> None:
    driver = ""
    if nvidia_smi := shutil.which("nvidia-smi"):
        answer = subprocess.run(
            [nvidia_smi, "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
        )
        if answer.returncode == 0:
            driver = answer.stdout.partition("\n")[0].strip()
    if driver:
        machine.versions["driver"] = driver
    if machine.torch is None:
        machine.no_gpu = "without torch none can be found"
        return
    import torch

    if not torch.cuda.is_available():
        machine.no_gpu = "torch.cuda.is_available() is false" + (
            f", though nvidia-smi shows driver {driver}"
            if driver
            else ", and nvidia-smi shows none"
        )
        return
    major, minor = torch.cuda.get_device_capability()
    machine.gpu = torch.cuda.get_device_name()
    machine.versions |= {"gpu": machine.gpu, "compute capability": f"{major}.{minor}"}
