"""The wheel has the right contents, tag and run path, and works where pip installs it."""

from __future__ import annotations

import email.message
import email.parser
import hashlib
import json
import os
import re
import shutil
import subprocess
import sysconfig
import zipfile
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from tests.util.servers.object_servers import MotoServer, environment_of_client
from tools.wheel.build_wheel import build
from tools.wheel.fresh_environment import make_environment

WHEEL = Path(os.environ["TORCHTRT_WHEEL"])
LIBRARY = "torch_tensorrt/lib/libtorchtrt_runtime.so"
INCLUDE = "torch_tensorrt/include/torch_tensorrt"

portable = pytest.mark.skipif(
    "manylinux" not in WHEEL.name,
    reason="this GCC is too new for a wheel that runs on other systems",
)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(WHEEL) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that has the wheel."""
    return make_environment(tmp_path_factory.mktemp("fresh") / "environment", WHEEL)


def dist_info(unpacked: Path) -> Path:
    (folder,) = unpacked.glob("*.dist-info")
    return folder


def metadata(unpacked: Path, name: str) -> email.message.Message:
    return email.parser.Parser().parsestr((dist_info(unpacked) / name).read_text())


def tool(name: str, *arguments: str) -> str:
    """Runs a command of this test's environment and returns what it prints."""
    command = str(Path(sysconfig.get_path("scripts"), name))
    result = subprocess.run([command, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run(python: Path, program: str, *arguments: str, **variables: str) -> str:
    """Runs a program without this test's packages and paths, and returns what it prints."""
    environment = {
        key: value for key, value in os.environ.items() if key != "PYTHONPATH"
    } | variables
    result = subprocess.run(
        [python, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def copy_of_project(unpacked: Path, project: Path) -> Path:
    """Copies the files of which the wheel was built to `project`, and returns `project`."""
    for package in ("torch_tensorrt", "torchtrt_cache"):
        shutil.copytree(
            unpacked / package, project / package, copy_function=shutil.copyfile
        )
    root = Path(os.environ["PYTHONPATH"].split(os.pathsep)[0])
    others = {
        "pyproject.toml": "py",
        "hatch_build.py": "py",
        "LICENSE": "",
        "README.md": "",
    }
    for name, folder in others.items():
        shutil.copyfile(root / folder / name, project / name)
    return project


def build_from(project: Path, wheel: Path) -> None:
    """Builds `wheel` from the files of `project`, in the reverse order."""
    files = sorted(path for path in project.rglob("*") if path.is_file())
    tag = WHEEL.stem.split("-", 2)[2]
    build(
        [f"{path.relative_to(project)}={path}" for path in reversed(files)], tag, wheel
    )


def test_holds_package_library_headers_and_licence(unpacked: Path) -> None:
    for name in (
        "torch_tensorrt/__init__.py",
        "torch_tensorrt/py.typed",
        "torchtrt_cache/__main__.py",
        "torchtrt_cache/py.typed",
        LIBRARY,
        f"{INCLUDE}/core/util/file_lock.h",
        f"{INCLUDE}/core/runtime/RuntimeCacheHandle.h",
    ):
        assert (unpacked / name).is_file(), name
    licence = dist_info(unpacked) / "licenses" / "LICENSE"
    assert "Redistribution and use" in licence.read_text()
    assert {entry.name for entry in unpacked.iterdir()} == {
        "torch_tensorrt",
        "torchtrt_cache",
        dist_info(unpacked).name,
    }


def test_declares_dependencies_and_supported_pythons(unpacked: Path) -> None:
    fields = metadata(unpacked, "METADATA")
    assert fields["Name"] == "torch-tensorrt-rtx-runtime"
    assert fields["Requires-Python"] == "<3.15,>=3.10"
    requirements = set(fields.get_all("Requires-Dist", []))
    assert {"torch>=2.11", "tensorrt-rtx>=1.6", "platformdirs>=4"} <= requirements


def test_passes_check_wheel_contents_and_twine() -> None:
    tool("check-wheel-contents", "--ignore=W009", str(WHEEL))  # two packages
    tool("twine", "check", "--strict", str(WHEEL))


@portable
def test_auditwheel_confirms_the_tag() -> None:
    assert WHEEL.name.endswith("-py3-none-manylinux_2_28_x86_64.whl")
    needed = json.loads(tool("auditwheel", "show", "--json", str(WHEEL)))["sym_tag"]
    version = re.fullmatch(r"manylinux_2_(\d+)_x86_64", needed)
    assert version, f"auditwheel knows no platform for the wheel: {needed}"
    assert int(version.group(1)) <= 28


@portable
def test_a_library_that_needs_a_newer_glibc_ends_the_build(
    unpacked: Path, tmp_path: Path
) -> None:
    project = copy_of_project(unpacked, tmp_path / "files")
    source = tmp_path / "newer.cpp"
    source.write_text('#include <dlfcn.h>\nvoid* newer() { return dlopen("", 0); }\n')
    subprocess.run(
        ["g++", "-shared", "-fPIC", source, "-o", project / LIBRARY], check=True
    )
    again = tmp_path / WHEEL.name
    with pytest.raises(SystemExit, match=r"GLIBC_2\.34.*py/glibc_2_28"):
        build_from(project, again)
    assert not again.exists()


def test_library_uses_no_python_and_finds_its_neighbours_by_relative_path(
    unpacked: Path,
) -> None:
    with (unpacked / LIBRARY).open("rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        assert isinstance(dynamic, DynamicSection)
        # mypy does not know the attributes, which are named after the tag's type.
        needed = [getattr(tag, "needed") for tag in dynamic.iter_tags("DT_NEEDED")]
        (run_path,) = (
            getattr(tag, "runpath") for tag in dynamic.iter_tags("DT_RUNPATH")
        )
    assert {"libtorch.so", "libtensorrt_rtx.so.1"} <= set(needed)
    assert not [name for name in needed if "python" in name]
    assert run_path == "$ORIGIN/../../torch/lib:$ORIGIN/../../tensorrt_rtx_libs"


def test_second_build_is_byte_identical(unpacked: Path, tmp_path: Path) -> None:
    """The files are in another folder and have other times and modes."""
    project = copy_of_project(unpacked, tmp_path / "files")
    files = sorted(path for path in project.rglob("*") if path.is_file())
    for index, path in enumerate(files):
        path.chmod(0o755 if index % 2 else 0o640)
        os.utime(path, (index, index))
    again = tmp_path / WHEEL.name
    build_from(project, again)
    assert (
        hashlib.sha256(again.read_bytes()).digest()
        == hashlib.sha256(WHEEL.read_bytes()).digest()
    )


def test_works_in_a_fresh_environment_without_a_gpu(
    python: Path, tmp_path: Path
) -> None:
    program = """
import json, sys
import torch
import torch_tensorrt
path = sys.argv[1]
handle = torch.classes.tensorrt.RuntimeCacheHandle(path)
handle.deserialize(torch.arange(100, dtype=torch.uint8))
saved = handle.save()
other = torch.classes.tensorrt.RuntimeCacheHandle(path)
loaded = other.load()
same = torch.equal(other.serialize(), handle.serialize())
print(json.dumps([torch_tensorrt.__version__, torch_tensorrt.__file__, saved, loaded, same]))
"""
    version, file, *figures = json.loads(
        run(python, program, str(tmp_path / "cache.bin"))
    )
    assert figures == [100, 100, True]
    assert version == WHEEL.name.split("-")[1]
    assert Path(file).is_relative_to(python.parent.parent)


def test_brings_the_command(python: Path, tmp_path: Path) -> None:
    cache = tmp_path / "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.0.bin"
    cache.write_bytes(b"kernels")
    command = [str(python.with_name("torchtrt-cache")), "info", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{cache.stem}  7 bytes" in result.stdout


def test_a_url_needs_an_extra(python: Path, tmp_path: Path) -> None:
    program = """
from torch_tensorrt.runtime import RuntimeCache
try:
    RuntimeCache("s3://bucket/kernels/")
except ImportError as error:
    print(error)
"""
    said = run(python, program, XDG_CACHE_HOME=str(tmp_path))
    assert said.endswith("pip install 'torch-tensorrt-rtx-runtime[fleet]'\n")


def test_the_extra_shares_kernels_through_an_object_store(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment", WHEEL, "fleet")
    # The simulated driver only identifies the GPU.
    ignore = "import warnings; warnings.filterwarnings('ignore', 'CUDA initialization')"
    save = """
import io
from torch_tensorrt.runtime import RuntimeCache
cache = RuntimeCache("s3://bucket/kernels/")
cache.load()
cache.load_from_stream(io.BytesIO(b"kernels"))
print(cache.save())
"""
    load = """
from torch_tensorrt.runtime import RuntimeCache
print(RuntimeCache("s3://bucket/kernels/").load())
"""
    server = MotoServer()
    with server:
        server.create_bucket("bucket")
        driver = Path(os.environ["FAKE_CUDA_DRIVER_LIBRARY"])
        variables = {
            **environment_of_client(server.port),
            "LD_LIBRARY_PATH": str(driver.parent),
            "FAKE_CUDA_GPU": "NVIDIA L4",
        }
        for machine, program in enumerate((save, load)):
            variables["XDG_CACHE_HOME"] = str(tmp_path / f"{machine}")
            assert run(python, f"{ignore}\n{program}", **variables) == "7\n"


def test_library_loads_without_python_having_loaded_its_neighbours(
    python: Path,
) -> None:
    program = """
import ctypes, pathlib, sys, sysconfig
assert "torch" not in sys.modules
ctypes.CDLL(str(pathlib.Path(sysconfig.get_path("purelib"), sys.argv[1])))
"""
    run(python, program, LIBRARY)


def test_headers_and_library_serve_a_cpp_program(
    unpacked: Path, python: Path, tmp_path: Path
) -> None:
    compiler = shutil.which("g++")
    assert compiler, "g++ is missing; building the library requires it, too"
    (site_packages,) = python.parent.parent.glob("lib/python*/site-packages")
    source = tmp_path / "main.cpp"
    source.write_text("""
#include "core/runtime/RuntimeCacheFile.h"
#include "core/util/file_lock.h"

int main(int, char** argv) {
  using torch_tensorrt::core::util::FileLock;
  FileLock lock(FileLock::lock_path(argv[1]));
  if (!lock.try_lock()) {
    return 1;
  }
  lock.unlock();
  torch_tensorrt::core::runtime::LockWaits waits;
  torch_tensorrt::core::runtime::RuntimeCacheFile file(argv[1], waits);
  return 0;
}
""")
    program = tmp_path / "main"
    subprocess.run(
        [
            compiler,
            "-std=c++20",
            f"-I{site_packages / INCLUDE}",
            source,
            site_packages / LIBRARY,
            f"-Wl,-rpath,{(site_packages / LIBRARY).parent}",
            "-Wl,--allow-shlib-undefined",
            "-o",
            program,
        ],
        check=True,
    )
    subprocess.run([program, tmp_path / "cache.bin"], check=True)
    assert (tmp_path / "cache.bin.lock").exists()
