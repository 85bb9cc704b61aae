"""The C++ RuntimeCacheHandle as Python sees it, without a GPU: its bytes wait."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import torch_tensorrt  # noqa: F401  registers the class


def make_handle(path: Path | str) -> Any:
    return torch.classes.tensorrt.RuntimeCacheHandle(str(path))


def to_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def to_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.tolist())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.bin"


def names_beside(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


def test_starts_empty(path: Path) -> None:
    handle = make_handle(path)
    assert handle.path == str(path)
    assert not handle.has_cache()
    empty = handle.serialize()
    assert (empty.dtype, empty.shape) == (torch.uint8, (0,))
    assert handle.load() == 0
    assert handle.save() == 0
    assert names_beside(path) == set()


def test_round_trip(path: Path) -> None:
    data = bytes(range(256)) * 1000
    handle = make_handle(path)
    handle.deserialize(to_tensor(data))
    assert handle.has_cache()
    assert handle.save() == len(data)
    assert handle.save() == 0
    assert path.read_bytes() == data
    other = make_handle(path)
    assert other.load() == len(data)
    assert to_bytes(other.serialize()) == data
    assert names_beside(path) == {"cache.bin", "cache.bin.lock"}


def test_another_path(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.bin"
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    assert handle.save(str(elsewhere)) == 7
    assert elsewhere.read_bytes() == b"kernels"
    assert make_handle("").load(path=str(elsewhere)) == 7
    assert not path.exists()


def test_tensors_of_the_caller_are_apart(path: Path) -> None:
    handle = make_handle(path)
    given = to_tensor(b"kernels")
    handle.deserialize(given)
    given.zero_()
    taken = handle.serialize()
    taken.zero_()
    assert to_bytes(handle.serialize()) == b"kernels"
    assert to_bytes(taken) == bytes(7)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(3),
        torch.zeros(3, dtype=torch.int8),
        torch.zeros(2, 3, dtype=torch.uint8),
        torch.zeros(3, dtype=torch.uint8, device="meta"),
        torch.zeros(3, dtype=torch.uint8).to_sparse(),
    ],
    ids=["float32", "int8", "matrix", "meta", "sparse"],
)
def test_refuses_other_tensors(path: Path, wrong: torch.Tensor) -> None:
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    with pytest.raises(RuntimeError, match="one-dimensional uint8 tensor on the CPU"):
        handle.deserialize(wrong)
    assert to_bytes(handle.serialize()) == b"kernels"


def test_takes_a_strided_tensor(path: Path) -> None:
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"k-e-r-n-")[::2])
    assert to_bytes(handle.serialize()) == b"kern"


@pytest.mark.parametrize(
    "duplicate",
    [lambda handle: pickle.loads(pickle.dumps(handle)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_copies_carry_path_and_bytes(path: Path, duplicate: Any) -> None:
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    other = duplicate(handle)
    assert other.path == str(path)
    assert to_bytes(other.serialize()) == b"kernels"
    assert other.save() == 7


def test_loaded_bytes_do_not_overwrite_a_newer_file(path: Path) -> None:
    path.write_bytes(b"old")
    handle = make_handle(path)
    assert handle.load() == 3
    path.write_bytes(b"newer")
    assert handle.save() == 0
    assert pickle.loads(pickle.dumps(handle)).save() == 0
    assert path.read_bytes() == b"newer"


def test_given_bytes_replace_an_unread_file_with_a_warning(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes(b"theirs")
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    assert handle.save() == 7
    log = capfd.readouterr().err
    assert "WARNING" in log and str(path) in log
    assert "7 bytes" in log and "6 bytes" in log
    assert path.read_bytes() == b"kernels"


@pytest.mark.parametrize("operation", ["load", "save"])
def test_system_failures_name_path_operation_and_cause(
    tmp_path: Path, operation: str
) -> None:
    handle = make_handle(tmp_path)
    handle.deserialize(to_tensor(b"kernels"))
    with pytest.raises(RuntimeError) as failure:
        getattr(handle, operation)()
    assert f"Can't {operation} the runtime cache '{tmp_path}'" in str(failure.value)
    assert "not a regular file" in str(failure.value)


def test_saving_to_a_missing_directory_fails(path: Path) -> None:
    missing = path.parent / "missing" / "cache.bin"
    handle = make_handle(missing)
    handle.deserialize(to_tensor(b"kernels"))
    with pytest.raises(RuntimeError, match=r"save.*No such file or directory"):
        handle.save()
    assert handle.load() == 0


def test_without_a_path_load_and_save_need_one() -> None:
    handle = make_handle("")
    handle.deserialize(to_tensor(b"kernels"))
    for operation in (handle.load, handle.save):
        with pytest.raises(RuntimeError, match="no path of its own"):
            operation()


def test_a_held_filelock_makes_save_time_out(path: Path) -> None:
    path.write_bytes(b"theirs")
    handle = make_handle(path)
    handle.load()
    handle.deserialize(to_tensor(b"kernels"))
    with FileLock(f"{path}.lock"):
        with pytest.raises(RuntimeError) as failure:
            handle.save()
        assert path.read_bytes() == b"theirs"
    assert f"Can't save the runtime cache '{path}'" in str(failure.value)
    assert f"'{path}.lock' for 10000 ms" in str(failure.value)
    assert handle.save() == 7
    assert path.read_bytes() == b"kernels"


def test_waiting_for_the_lock_does_not_stop_other_threads(path: Path) -> None:
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    written: list[int] = []
    saving = threading.Thread(target=lambda: written.append(handle.save()))
    # Were the interpreter's lock held by the waiting save, this block could not end before that
    # has timed out.
    with FileLock(f"{path}.lock"):
        saving.start()
        saving.join(timeout=0.2)
        assert to_bytes(handle.serialize()) == b"kernels"
    saving.join()
    assert written == [7]


def test_log_level() -> None:
    before = torch.ops.tensorrt.get_logging_level()
    try:
        for level in range(6):
            torch.ops.tensorrt.set_logging_level(level)
            assert torch.ops.tensorrt.get_logging_level() == level
        with pytest.raises(RuntimeError, match="Unknown log level 6"):
            torch.ops.tensorrt.set_logging_level(6)
    finally:
        torch.ops.tensorrt.set_logging_level(before)
