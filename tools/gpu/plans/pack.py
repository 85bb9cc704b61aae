"""Packs what a machine with a GPU but no network lacks into one file, for check.sh's --pack.

    ./bazelw run //tools/gpu:pack -- --out FILE.tar.xz [--python 3.12]

In it are TensorRT-RTX's library, its Python package for that Python and its C++ headers; filelock,
platformdirs and pytest; GoogleTest's sources; and the engines of build_plans.py. Takes minutes: the
library, 227 MB, is compressed to a quarter.
"""

from __future__ import annotations

import argparse
import lzma
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

from tools.gpu.check.prerequisites import Options, look
from tools.gpu.names import COMPUTE_CAPABILITIES
from tools.gpu.plans.build_plans import build, build_test_plans
from tools.gpu.plans.models import CASES

_PYTHON_PACKAGES = ["filelock", "platformdirs", "pytest"]

# Machine code packs better with its jumps made absolute; a large window finds kernels that differ
# in little but their target.
_FILTERS: list[dict[str, int]] = [
    {"id": lzma.FILTER_X86},
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": 256 << 20,
    },
]


def stage(folder: Path, options: Options, python: str) -> None:
    """Lays out below `folder` what check.sh looks for in a pack."""
    machine = look(options)
    if machine.tensorrt_rtx_include is None or machine.tensorrt_rtx_library is None:
        sys.exit("pack.py: missing: " + "; ".join(machine.missing))
    if machine.googletest is None:
        sys.exit("pack.py: missing: googletest's sources (give --googletest DIR)")
    shutil.copytree(machine.tensorrt_rtx_include, folder / "include")
    for part in ("googletest", "googlemock"):
        shutil.copytree(
            machine.googletest / part,
            folder / "googletest" / part,
            ignore=shutil.ignore_patterns("test", "samples", "docs"),
        )
    shutil.copy(machine.googletest / "CMakeLists.txt", folder / "googletest")
    _copy_packages(folder, python)
    (folder / "plans").mkdir()
    for case in CASES.values():
        build(case, folder / "plans", COMPUTE_CAPABILITIES)
    build_test_plans(folder / "plans", COMPUTE_CAPABILITIES)


def _copy_packages(folder: Path, python: str) -> None:
    packages = folder / "packages"
    packages.mkdir()
    installed = Path(sysconfig.get_path("purelib"))
    names = ["tensorrt_rtx", "tensorrt_rtx_libs"]
    names += [path.name for path in installed.glob("tensorrt_rtx*.dist-info")]
    for name in names:
        shutil.copytree(
            installed / name,
            packages / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    # The bindings are compiled for one version of Python.
    bindings = "tensorrt_rtx_cu13_bindings"
    _pip(packages, python, "--no-deps", f"{bindings}=={metadata.version(bindings)}")
    _pip(packages, python, *_PYTHON_PACKAGES)
    if old_filelock := os.environ.get("FILELOCK_3"):
        shutil.copytree(old_filelock, folder / "filelock_3")


def _pip(target: Path, python: str, *words: str) -> None:
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "install"),
        *("--quiet", "--only-binary=:all:", "--no-compile", "--upgrade"),
        *("--python-version", python, "--implementation", "cp"),
        *("--platform", "manylinux_2_28_x86_64", "--target", str(target)),
    ]
    subprocess.run([*command, *words], check=True)


def write_pack(folder: Path, path: Path) -> None:
    """Compresses the contents of `folder` into one file, which is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    with (
        lzma.open(temporary, "wb", format=lzma.FORMAT_XZ, filters=_FILTERS) as stream,
        tarfile.open(fileobj=stream, mode="w|") as archive,
    ):
        for entry in sorted(folder.iterdir()):
            archive.add(entry, arcname=entry.name)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.tar.xz")
    parser.add_argument(
        "--python",
        default=f"{sys.version_info[0]}.{sys.version_info[1]}",
        help="the other machine's version; default: this one's, %(default)s",
    )
    parser.add_argument("--headers", type=Path, help="TensorRT-RTX's C++ headers")
    parser.add_argument("--googletest", type=Path, help="GoogleTest's sources")
    arguments = parser.parse_args()
    # `bazel run` starts programs elsewhere than where it was called.
    path = Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."), arguments.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage(
            folder,
            Options(arguments.headers, arguments.googletest),
            arguments.python,
        )
        write_pack(folder, path)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
