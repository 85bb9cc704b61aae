"""Packs what a machine with a GPU but no network lacks into one file, for check.sh's --pack.

    ./bazelw run //tools/gpu:pack -- --out FILE.tar.xz --python 3.12

The file has TensorRT-RTX's library, C++ headers and Python package; filelock, platformdirs and
pytest; and the engines of plans.py. Takes minutes: the library, 227 MB, is compressed to a quarter.
"""

from __future__ import annotations

import argparse
import lzma
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from tools.gpu.plans import build_all

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


def stage(folder: Path, python: str) -> dict[str, Path]:
    """Returns packages and engines by their names in the pack. Some are made in `folder`."""
    packages, plans = folder / "packages", folder / "plans"
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
    build_all(plans)
    return {
        "packages": packages,
        "plans": plans,
        **{
            f"packages/{package.name}": package
            for package in Path(sysconfig.get_path("purelib")).glob("tensorrt_rtx*")
            if "_bindings" not in package.name
        },
    }


def write(path: Path, entries: Mapping[str, Path]) -> None:
    """Compresses files and folders into one file."""
    with (
        lzma.open(path, "wb", filters=_FILTERS) as stream,
        tarfile.open(fileobj=stream, mode="w|") as archive,
    ):
        for name, source in entries.items():
            archive.add(source.resolve(), name)


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
    workspace = Path(os.environ["BUILD_WORKSPACE_DIRECTORY"])
    output_base = (workspace / f"bazel-{workspace.name}").resolve().parents[1]
    with tempfile.TemporaryDirectory() as name:
        entries = stage(Path(name), arguments.python)
        entries["include"] = output_base / "external/tensorrt_rtx/include"
        write(path, entries)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
