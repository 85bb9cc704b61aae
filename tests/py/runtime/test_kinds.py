"""Kinds of machine and their files in a directory."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from torchtrt_cache.kinds import (
    RuntimeCacheKind,
    UnknownKindError,
    file_in,
    files_to_load,
    is_directory,
    is_empty,
    kind_of_device,
    kinds_of_machine,
)

L4 = RuntimeCacheKind("NVIDIA L4", 89, "1.6.1.120", "linux", 13010)


def _put(directory: Path, *kinds_or_names: RuntimeCacheKind | str) -> list[str]:
    """Writes files that are not empty. Returns their paths."""
    names = [k if isinstance(k, str) else k.file_name() for k in kinds_or_names]
    for name in names:
        (directory / name).write_bytes(b"kernels")
    return [str(directory / name) for name in names]


def _with_driver(cuda_driver: int) -> RuntimeCacheKind:
    return replace(L4, cuda_driver=cuda_driver)


def test_a_file_is_named_after_all_that_tells_kinds_apart() -> None:
    assert L4.file_name() == "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.1.bin"
    ampere = RuntimeCacheKind("NVIDIA RTX A6000", 86, "1.7.0.5", "Linux", 12080)
    assert ampere.file_name() == "nvidia-rtx-a6000-sm86-rtx1.7.0.5-linux-driver12.8.bin"


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("NVIDIA GeForce RTX 4090 (Laptop)", "nvidia-geforce-rtx-4090-laptop"),
        ("  -L4/../..\0\n ", "l4"),
        ("Größe K\u212aelvin \u0130", "gr-e-k-elvin"),
        ("x" * 300, "x" * 128),
        ("x" * 127 + " y", "x" * 127),
    ],
)
def test_a_gpus_name_becomes_part_of_a_file_name(gpu: str, name: str) -> None:
    file_name = replace(L4, gpu=gpu).file_name()
    assert file_name == f"{name}-sm89-rtx1.6.1.120-linux-driver13.1.bin"


def test_a_directory_is_there_or_is_written_with_a_separator(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    assert is_directory(str(tmp_path))
    assert is_directory(str(tmp_path / "link"))
    assert is_directory(f"{tmp_path}/missing/")
    assert not is_directory(str(tmp_path / "missing"))
    assert not is_directory(str(tmp_path / "dangling"))
    assert not is_directory(str(file))
    assert not is_directory(str(file / "below"))


def test_a_path_with_and_without_separator_has_one_file() -> None:
    assert file_in("/caches", L4) == file_in("/caches/", L4)
    assert file_in("/caches", L4) == f"/caches/{L4.file_name()}"


def test_a_file_is_empty_as_far_as_anybody_can_tell(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert is_empty(str(file))
    file.touch()
    assert is_empty(str(file))
    assert is_empty(str(file / "below"))
    file.write_bytes(b"k")
    assert not is_empty(str(file))


def test_an_own_file_is_wanted_before_those_of_older_drivers_newest_first(
    tmp_path: Path,
) -> None:
    l4 = _with_driver(13120)
    drivers = [13120, 13110, 13100, 13020, 13000]
    expected = _put(tmp_path, *map(_with_driver, drivers))
    expected += _put(tmp_path, "runtime_cache-1.6.1.120.bin")
    assert files_to_load(str(tmp_path), l4) == expected


def test_other_kinds_files_are_not_wanted(tmp_path: Path) -> None:
    _put(
        tmp_path,
        _with_driver(13020),
        _with_driver(12080),
        _with_driver(14000),
        replace(L4, gpu="NVIDIA L40", cuda_driver=13000),
        replace(L4, compute_capability=90, cuda_driver=13000),
        replace(L4, tensorrt_rtx="1.6.1.12", cuda_driver=13000),
        replace(L4, os_family="windows", cuda_driver=13000),
        "runtime_cache-1.6.1.12.bin",
    )
    assert files_to_load(str(tmp_path), L4) == [file_in(str(tmp_path), L4)]


@pytest.mark.parametrize(
    "driver",
    ["13.00", "13.", "13.-1", "13.+0", "13.\u0660", "13.0 ", "13.0\n", "013.0"],
)
def test_a_name_that_nobody_writes_is_not_wanted(tmp_path: Path, driver: str) -> None:
    _put(tmp_path, f"nvidia-l4-sm89-rtx1.6.1.120-linux-driver{driver}.bin")
    assert files_to_load(str(tmp_path), L4) == [file_in(str(tmp_path), L4)]


def test_other_files_that_are_empty_are_not_wanted(tmp_path: Path) -> None:
    old, older = (tmp_path / _with_driver(d).file_name() for d in (13090, 13080))
    old.touch()
    older.symlink_to("missing")
    own = _with_driver(13100)
    assert files_to_load(str(tmp_path), own) == [file_in(str(tmp_path), own)]


def test_names_of_other_encodings_are_passed_over(tmp_path: Path) -> None:
    for name in (b"\xff\xfe", b"nvidia-l4-sm89-\xff.bin"):
        (tmp_path / os.fsdecode(name)).touch()
    own = _put(tmp_path, L4)
    assert files_to_load(str(tmp_path), L4) == own


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_cannot_be_listed_has_no_other_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    path = str(tmp_path / name)
    assert files_to_load(path, L4) == [file_in(path, L4)]


def test_the_old_default_is_wanted_in_a_directory_that_may_not_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    files = _put(tmp_path, L4, "runtime_cache-1.6.1.120.bin")
    monkeypatch.setattr(os, "listdir", fail)
    assert files_to_load(str(tmp_path), L4) == files


WITH_FAKE_DRIVER = pytest.mark.skipif(
    "FAKE_CUDA_DRIVER_LIBRARY" not in os.environ, reason="only Bazel builds the driver"
)


def _told_by_driver(code: str, **environment: str) -> str:
    """Returns what the code prints in a process that uses the tests' CUDA driver."""
    library = os.environ["FAKE_CUDA_DRIVER_LIBRARY"]
    done = subprocess.run(
        [sys.executable, "-c", f"from torchtrt_cache.kinds import *\n{code}"],
        env={
            **os.environ,
            **environment,
            "LD_LIBRARY_PATH": str(Path(library).parent),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@WITH_FAKE_DRIVER
def test_the_driver_tells_the_kind_of_a_device() -> None:
    told = _told_by_driver(
        "print(kind_of_device(0, '1.6.1.120') == RuntimeCacheKind("
        "'NVIDIA RTX A6000', 86, '1.6.1.120', 'linux', 12080))\n"
        "(kind,) = kinds_of_machine()\n"
        "print(kind.gpu, kind.tensorrt_rtx == __import__('tensorrt_rtx').__version__)",
        FAKE_CUDA_GPU="NVIDIA RTX A6000",
        FAKE_CUDA_CAPABILITY="8.6",
        FAKE_CUDA_DRIVER="12080",
    )
    assert told.splitlines() == ["True", "NVIDIA RTX A6000 True"]


@WITH_FAKE_DRIVER
def test_a_version_that_is_loaded_needs_no_package() -> None:
    told = _told_by_driver(
        "from importlib import metadata\n"
        "def version(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = version\n"
        "print(kinds_of_machine())\n"
        "(kind,) = kinds_of_machine('1.6.1.120')\n"
        "print(kind.tensorrt_rtx)",
        FAKE_CUDA_GPU="NVIDIA L4",
    )
    assert told.splitlines() == ["[]", "1.6.1.120"]


_SAY_WHY = """
print(kinds_of_machine())
try:
    kind_of_device({}, "1.6.1.120")
except UnknownKindError as error:
    print(error)
"""


@WITH_FAKE_DRIVER
def test_without_a_device_the_kind_is_unknown() -> None:
    assert _told_by_driver(_SAY_WHY.format(0)).splitlines() == [
        "[]",
        "the CUDA driver's cuInit failed with 100",
    ]
    told = _told_by_driver(_SAY_WHY.format(1), FAKE_CUDA_GPU="NVIDIA L4")
    assert told.splitlines()[1] == "the CUDA driver's cuDeviceGet failed with 100"


def test_without_a_driver_the_kind_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", load)
    assert kinds_of_machine() == []
    with pytest.raises(UnknownKindError) as failure:
        kind_of_device(0, "1.6.1.120")
    assert str(failure.value) == (
        "there is no CUDA driver: libcuda.so.1: cannot open shared object file"
    )


def test_the_driver_tells_what_torch_tells() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")
    for ordinal in range(torch.cuda.device_count()):
        torchs = torch.cuda.get_device_properties(ordinal)
        kind = kind_of_device(ordinal, "1.6.1.120")
        assert kind.gpu == torchs.name
        assert kind.compute_capability == 10 * torchs.major + torchs.minor
