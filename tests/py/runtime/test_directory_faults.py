"""Every system call on a directory fails in turn, and so does every function of the CUDA driver.

LD_PRELOAD names the library of observed_calls.cpp, which calls the test before each call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.py.runtime.live_handles import (
    compile_into,
    kernels_in,
    kernels_on_disk,
    save_as_other,
)
from tests.py.runtime.runtime_cache_testing import Log, handle_of, to_tensor
from tests.util.processes.observed_calls import Faults, observed
from tests.util.simulation.simulated_device import KIND, installed_device
from torchtrt_cache.kinds import kinds_of_machine

pytestmark = [
    # Evaluated before the tests' driver is loaded, since torch would need more of its functions.
    pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
    pytest.mark.usefixtures("without_checkpoints"),
]

OLD = KIND.file_name()
OWN = replace(KIND, cuda_driver=13010).file_name()
MANY = 1000  # more system calls than a use makes
# If these fail, the directory can't be searched and counts as having no files of older drivers.
OF_SEARCH = {"opendir", "readdir", "stat"}


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    ctypes.CDLL(os.environ["FAKE_CUDA_DRIVER_LIBRARY"])  # dlopen() finds it by its name
    monkeypatch.setenv("FAKE_CUDA_GPU", KIND.gpu)
    monkeypatch.setenv("FAKE_CUDA_DRIVER", "13010")
    with installed_device() as device:
        yield device


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "caches"


@pytest.fixture
def older(device: Any, runtime: str, tmp_path: Path) -> bytes:
    """The cache of an older driver."""
    device.set_environment(cuda_driver=13000)
    save_as_other(runtime, tmp_path / OLD, "old")
    device.set_environment(cuda_driver=13010)
    data = (tmp_path / OLD).read_bytes()
    shutil.rmtree(tmp_path)
    return data


State = dict[Path, tuple[int, int, bytes]]


def fill(directory: Path, older: bytes) -> State:
    """Fills a directory with the older driver's file and a file that is not a cache."""
    shutil.rmtree(directory.parent, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / OLD).write_bytes(older)
    (directory / "notes").write_bytes(b"theirs")
    return state_of(directory)


def state_of(directory: Path) -> State:
    state = {}
    for path in (directory / OLD, directory / "notes"):
        status = path.stat()
        state[path] = status.st_ino, status.st_mtime_ns, path.read_bytes()
    return state


class Use:
    """Something that a process does with a directory."""

    file: Path | None = None  # the file that it writes

    def __init__(self, device: Any, runtime: str, directory: Path) -> None:
        self.device = device
        self.runtime = runtime
        self.handle = handle_of(runtime, self.path_in(directory))
        self.prepare(directory)

    def path_in(self, directory: Path) -> str:
        return str(directory)

    def prepare(self, directory: Path) -> None:
        pass

    def __call__(self) -> int:
        """Returns the number of bytes loaded or saved, or 0 if it is unknown."""
        raise NotImplementedError

    def has_worked(self) -> bool:
        raise NotImplementedError


class PendingLoad(Use):
    def __call__(self) -> int:
        loaded: int = self.handle.load()
        return loaded

    def has_worked(self) -> bool:
        return self.handle.has_cache() and kernels_in(self.handle.serialize()) == [
            "old"
        ]


class FirstStart(Use):
    def prepare(self, directory: Path) -> None:
        self.device.reset_counters()

    def __call__(self) -> int:
        compile_into(self.runtime, self.handle, "old", "new")
        return 0

    def has_worked(self) -> bool:
        compilations: int = self.device.counters()["compilations"]
        return compilations == 1


class Save(Use):
    kernels: tuple[str, ...] = ("new", "old")

    def prepare(self, directory: Path) -> None:
        compile_into(self.runtime, self.handle, *self.kernels)
        self.file = directory / OWN

    def __call__(self) -> int:
        written: int = self.handle.save()
        return written

    def has_worked(self) -> bool:
        assert self.file is not None
        return self.file.exists() and kernels_on_disk(self.file) == [*self.kernels]


class SaveToNewDirectory(Save):
    kernels = ("new",)

    def path_in(self, directory: Path) -> str:
        return f"{directory}/new/"

    def prepare(self, directory: Path) -> None:
        super().prepare(directory / "new")


def names_for(directory: Path, file: Path | None) -> set[Path]:
    """The names that may exist after a use that writes `file`."""
    names = {directory / name for name in ("notes", OLD, f"{OLD}.lock")}
    if file is not None:
        names |= {file, Path(f"{file}.lock"), Path(f"{file}.merge.lock")}
        names.add(file.parent)
    return names | {directory}


USES = [PendingLoad, FirstStart, Save, SaveToNewDirectory]
OF_ALL = {"flock", "fstat", "lstat", "open", "opendir", "readdir", "stat", "utimensat"}
OF_LOADS = OF_ALL | {"fchmod", "fchown", "read"}
OF_SAVES = OF_ALL | {"fsync", "rename", "write"}
CALLS = {
    PendingLoad: OF_LOADS,
    FirstStart: OF_LOADS,
    Save: OF_SAVES,
    SaveToNewDirectory: OF_SAVES | {"mkdir"},
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES])
def test_a_call_that_fails_harms_nothing_and_is_said(
    device: Any,
    runtime: str,
    directory: Path,
    older: bytes,
    use: type[Use],
    error: int,
    log: Log,
) -> None:
    fill(directory, older)
    use(device, runtime, directory)()  # the first use imports modules
    failed = set()
    for nth in range(1, MANY):
        before = fill(directory, older)
        used = use(device, runtime, directory)
        log.lines()
        faults = Faults(error, nth)
        moved, said = 0, ""
        try:
            with observed(faults):
                moved = used()
        except RuntimeError as failure:
            said = str(failure)
        said += "".join(log.warnings())
        where = f"call {nth}, of {faults.failed}: {said}"
        assert state_of(directory) == before, where
        there = set(directory.parent.rglob("*"))
        assert there <= names_for(directory, used.file), where
        assert used.has_worked() or not moved, where
        is_search = used.file is None and faults.failed in OF_SEARCH
        if not used.has_worked() and not is_search:
            assert str(directory) in said, where
            assert os.strerror(error) in said or "not a regular file" in said, where
        if not faults.failed:
            break
        failed.add(faults.failed)
        if use is not FirstStart:
            used()
            assert used.has_worked(), where
    assert failed == CALLS[use]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("call", ["open", "flock", "read", "write", "fsync"])
def test_an_interrupted_call_is_made_again(
    device: Any,
    runtime: str,
    directory: Path,
    older: bytes,
    use: type[Use],
    call: str,
    log: Log,
) -> None:
    for nth in range(1, MANY):
        before = fill(directory, older)
        used = use(device, runtime, directory)
        faults = Faults(errno.EINTR, nth, call)
        with observed(faults):
            used()
        assert used.has_worked()
        assert state_of(directory) == before
        if not faults.failed:
            break
    assert nth > 1 or call not in CALLS[use]
    assert log.warnings() == []


def unknown(operation: str, directory: Path, function: str) -> str:
    return (
        f"Can't {operation} the runtime cache '{directory}': it is a directory with a file for "
        "each kind of machine, and the kind of this one is unknown: the CUDA driver's "
        f"{function} failed with 999"
    )


@pytest.mark.parametrize(
    "function",
    [
        "cuInit",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceGetAttribute",
        "cuDriverGetVersion",
    ],
)
def test_a_function_of_the_driver_that_fails_makes_the_kind_unknown(
    runtime: str,
    directory: Path,
    older: bytes,
    function: str,
    monkeypatch: pytest.MonkeyPatch,
    log: Log,
) -> None:
    fill(directory, older)
    assert len(kinds_of_machine()) == 1
    monkeypatch.setenv("FAKE_CUDA_FAIL", function)
    before = state_of(directory)
    assert kinds_of_machine() == []
    pending = handle_of(runtime, directory)
    for _ in range(2):
        assert pending.load() == 0
    assert log.warnings() == [
        f"WARNING: {unknown('load', directory, function)}. Kernels will be compiled anew"
    ]
    assert not pending.has_cache()
    pending.deserialize(to_tensor(b"kernels"))
    with pytest.raises(RuntimeError) as failure:
        pending.save()
    assert str(failure.value).endswith(unknown("save", directory, function))
    # The engine's device determines the kind of a live handle.
    started = compile_into(runtime, handle_of(runtime, directory), "old", "new")
    assert started.save() > 0
    assert kernels_on_disk(directory / OWN) == ["new", "old"]
    assert state_of(directory) == before
    assert log.warnings() == []


def test_devices_that_can_not_be_counted_have_no_kinds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(kinds_of_machine()) == 1
    monkeypatch.setenv("FAKE_CUDA_FAIL", "cuDeviceGetCount")
    assert kinds_of_machine() == []
