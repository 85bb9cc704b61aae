"""Packs what a machine with a GPU but no network lacks into one file, for check.sh's --pack.

    ./bazelw run //tools/gpu:pack -- --out FILE.tar.xz --python 3.12

The file has TensorRT-RTX's library, C++ headers and Python package; filelock, platformdirs and
pytest; and the engines of plans.py. Takes minutes, to compress the library to a quarter.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

from tools.gpu.plans import build_all

# Machine code packs better with its jumps made absolute; a large window finds kernels that differ
# in little but their target.
_XZ = "xz --x86 --lzma2=preset=9e,dict=256MiB"


def stage(folder: Path, python: str) -> None:
    """Fills `folder` with packages and engines. Some packages are links."""
    packages = folder / "packages"
    pip = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "install"),
        *("--quiet", "--no-compile", "--only-binary=:all:", "--implementation", "cp"),
        *("--python-version", python, "--platform", "manylinux_2_28_x86_64"),
        *("--target", str(packages), "--upgrade"),
    ]
    # Compiled for one version of Python.
    bindings = "tensorrt_rtx_cu13_bindings"
    version = metadata.version(bindings)
    subprocess.run([*pip, "--no-deps", f"{bindings}=={version}"], check=True)
    subprocess.run([*pip, "filelock", "platformdirs", "pytest"], check=True)
    for package in Path(sysconfig.get_path("purelib")).glob("tensorrt_rtx*"):
        if "_bindings" not in package.name:
            (packages / package.name).symlink_to(package)
    build_all(folder / "plans")


def write(path: Path, folder: Path) -> None:
    """Compresses the folder into one file, with what links in it lead to."""
    command = ["tar", "--create", "--dereference", f"--use-compress-program={_XZ}"]
    subprocess.run([*command, f"--file={path}", "-C", folder, "."], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.tar.xz")
    parser.add_argument(
        "--python", required=True, help="the version of Python on the other machine"
    )
    arguments = parser.parse_args()
    # `bazel run` starts programs elsewhere than where it was called.
    path = Path(os.environ["BUILD_WORKING_DIRECTORY"], arguments.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    headers = Path(os.environ["VERSION_HEADER"]).resolve().parent
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage(folder, arguments.python)
        (folder / "include").symlink_to(headers)
        write(path, folder)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
