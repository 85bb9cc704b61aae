"""Builds the C++ half by CMakeLists.txt, and puts the Python package on top of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.gpu.check.prerequisites import ROOT, Machine

LIBRARY = "libtorchtrt_runtime.so"
SIMULATED_LIBRARY = "libtorchtrt_runtime_simulated.so"

Run = Callable[[list[str]], "int | None"]


@dataclass(frozen=True)
class Build:
    """What was built.

    Attributes:
        failure: What broke off, empty if nothing did.
        objects: How many source files were compiled, those of GoogleTest left out.
        cpp_tests: The programs of the gtest suite.
    """

    folder: Path
    failure: str
    objects: int
    cpp_tests: list[Path]


def configure_command(machine: Machine, folder: Path) -> list[str]:
    """CMake's arguments for that machine; nothing of it may be missing."""
    assert machine.cmake and machine.generator
    definitions = {
        "CMAKE_CXX_COMPILER": machine.compiler,
        "TORCH_DIR": machine.torch,
        "CUDA_INCLUDE": machine.cuda_include,
        "TENSORRT_RTX_INCLUDE": machine.tensorrt_rtx_include,
        "TENSORRT_RTX_LIBRARY": machine.tensorrt_rtx_library,
        "GOOGLETEST_DIR": machine.googletest or "",
    }
    return [
        machine.cmake,
        "-G",
        machine.generator,
        "-S",
        str(ROOT / "tools/gpu"),
        "-B",
        str(folder),
        *(f"-D{name}={value}" for name, value in definitions.items()),
    ]


def build(machine: Machine, folder: Path, jobs: int, run: Run) -> Build:
    """Builds what has changed; a file that can't be compiled does not stop the others.

    Args:
        run: Runs a command into the log and answers its exit status, None if that took too long.
    """
    if run(configure_command(machine, folder)) != 0:
        return Build(folder, "cmake could not configure it", 0, [])
    assert machine.cmake
    keep_going = ["--", "-k", *(["0"] if machine.generator == "Ninja" else [])]
    status = run(
        [machine.cmake, "--build", str(folder), "--parallel", str(jobs), *keep_going]
    )
    failure = (
        "it took too long" if status is None else "the build failed" if status else ""
    )
    tests = sorted((folder / "cpp_tests").glob("test_*"))
    objects = [
        path for path in folder.rglob("*.cpp.o") if "CompilerId" not in str(path)
    ]
    return Build(folder, failure, len(objects), tests)


def stage_package(build_folder: Path, folder: Path, library: str) -> Path:
    """The Python packages as they are in the tree, on the library that was built.

    Returns:
        `folder`, for the PYTHONPATH.
    """
    package = folder / "torch_tensorrt"
    shutil.rmtree(package, ignore_errors=True)
    (package / "lib").mkdir(parents=True)
    for entry in (ROOT / "py/torch_tensorrt").iterdir():
        if entry.name not in ("lib", "__pycache__", "_version.py"):
            (package / entry.name).symlink_to(entry)
    command = folder / "torchtrt_cache"
    command.unlink(missing_ok=True)
    command.symlink_to(ROOT / "py/torchtrt_cache")
    built = build_folder / library
    if built.exists():
        (package / "lib" / LIBRARY).symlink_to(built)
    (package / "_version.py").write_text(
        f'__version__ = "{_version()}"\nBUILT_FOR = {_built_for()}\n'
    )
    return folder


def _version() -> str:
    variables: dict[str, str] = {}
    exec((ROOT / "py/version.bzl").read_text(), variables)
    return variables["VERSION"]


def _built_for() -> tuple[str, ...]:
    """The minor versions of the packages, which those of the headers must equal."""
    import tensorrt_rtx
    import torch

    packages = torch, tensorrt_rtx
    return tuple(".".join(each.__version__.split(".")[:2]) for each in packages)


def python_path(package: Path) -> dict[str, str]:
    """An environment in which Python imports that package and this repository."""
    path = [str(package), str(ROOT)]
    if inherited := os.environ.get("PYTHONPATH"):
        path.append(inherited)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def probe(environment: dict[str, str], python: str) -> str:
    """Why the staged package's C++ library can't be loaded, empty if it can."""
    program = "from torch_tensorrt._library import library_error; print(library_error() or '')"
    answer = subprocess.run(
        [python, "-c", program], env=environment, capture_output=True, text=True
    )
    if answer.returncode:
        return (answer.stderr.strip().splitlines() or ["it fell silent"])[-1]
    return answer.stdout.strip()
