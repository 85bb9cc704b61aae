"""The RuntimeCacheHandle of either runtime, without a GPU: its bytes stay pending."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tests.py.runtime.runtime_cache_testing import (
    Log,
    MakeHandle,
    copy_of,
    handle_of,
    names_in,
    to_bytes,
    to_tensor,
)


def test_starts_empty(make_handle: MakeHandle, path: Path) -> None:
    handle = make_handle(path)
    assert handle.path == str(path)
    assert not handle.has_cache()
    empty = handle.serialize()
    assert (empty.dtype, empty.shape) == (torch.uint8, (0,))
    assert handle.load() == 0
    assert handle.save() == 0
    assert names_in(path.parent) == set()


def test_round_trip(make_handle: MakeHandle, path: Path) -> None:
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
    assert names_in(path.parent) == {"cache.bin", "cache.bin.lock"}


def test_another_path(make_handle: MakeHandle, path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.bin"
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    assert handle.save(str(elsewhere)) == 7
    assert elsewhere.read_bytes() == b"kernels"
    assert make_handle("").load(path=str(elsewhere)) == 7
    assert not path.exists()


def test_tensors_of_the_caller_are_apart(make_handle: MakeHandle, path: Path) -> None:
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
def test_refuses_other_tensors(
    make_handle: MakeHandle, path: Path, wrong: torch.Tensor
) -> None:
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    with pytest.raises(RuntimeError, match="one-dimensional uint8 tensor on the CPU"):
        handle.deserialize(wrong)
    assert to_bytes(handle.serialize()) == b"kernels"


def test_takes_a_strided_tensor(make_handle: MakeHandle, path: Path) -> None:
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"k-e-r-n-")[::2])
    assert to_bytes(handle.serialize()) == b"kern"


def test_copies_carry_path_and_bytes(make_handle: MakeHandle, path: Path) -> None:
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    other = copy_of(handle)
    assert other.path == str(path)
    assert to_bytes(other.serialize()) == b"kernels"
    assert other.save() == 7


def test_loaded_bytes_do_not_overwrite_a_newer_file(
    make_handle: MakeHandle, path: Path
) -> None:
    path.write_bytes(b"old")
    handle = make_handle(path)
    assert handle.load() == 3
    path.write_bytes(b"newer")
    assert handle.save() == 0
    assert copy_of(handle).save() == 0
    assert path.read_bytes() == b"newer"


def test_given_bytes_replace_an_unread_file_with_a_warning(
    make_handle: MakeHandle, path: Path, log: Log
) -> None:
    path.write_bytes(b"theirs")
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    assert handle.save() == 7
    (warning,) = log.warnings()
    assert f"'{path}'" in warning
    assert "7 bytes" in warning and "6 bytes" in warning
    assert path.read_bytes() == b"kernels"


@pytest.mark.parametrize("operation", ["load", "save"])
def test_system_failures_name_path_operation_and_cause(
    make_handle: MakeHandle, path: Path, operation: str
) -> None:
    os.mkfifo(path)
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    with pytest.raises(RuntimeError) as failure:
        getattr(handle, operation)()
    assert f"Can't {operation} the runtime cache '{path}'" in str(failure.value)
    assert "not a regular file" in str(failure.value)


def test_saving_to_a_missing_directory_fails(
    make_handle: MakeHandle, path: Path
) -> None:
    missing = path.parent / "missing" / "cache.bin"
    handle = make_handle(missing)
    handle.deserialize(to_tensor(b"kernels"))
    with pytest.raises(RuntimeError, match=r"save.*No such file or directory"):
        handle.save()
    assert handle.load() == 0


def test_without_a_path_load_and_save_need_one(make_handle: MakeHandle) -> None:
    handle = make_handle("")
    handle.deserialize(to_tensor(b"kernels"))
    for operation in (handle.load, handle.save):
        with pytest.raises(RuntimeError, match="no path of its own"):
            operation()


def test_a_held_filelock_makes_save_time_out(
    make_handle: MakeHandle, path: Path
) -> None:
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


def test_waiting_for_the_lock_does_not_stop_other_threads(
    make_handle: MakeHandle, path: Path
) -> None:
    handle = make_handle(path)
    handle.deserialize(to_tensor(b"kernels"))
    written: list[int] = []
    saving = threading.Thread(target=lambda: written.append(handle.save()))
    # If the waiting save held the interpreter's lock, this block could not end before the save
    # times out.
    with FileLock(f"{path}.lock"):
        saving.start()
        saving.join(timeout=0.2)
        assert to_bytes(handle.serialize()) == b"kernels"
    saving.join()
    assert written == [7]


def test_other_than_a_tensor_is_refused(make_handle: MakeHandle) -> None:
    with pytest.raises(RuntimeError):
        make_handle("").deserialize(b"kernels")


def test_handed_out_bytes_outlive_the_handle(make_handle: MakeHandle) -> None:
    handle = make_handle("")
    handle.deserialize(to_tensor(b"kernels"))
    taken = handle.serialize()
    handle.deserialize(to_tensor(b""))
    assert to_bytes(taken) == b"kernels"
    assert not handle.has_cache()


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "const_data_ptr"),
    reason="this torch can't return an address without copying the bytes that lazy clones share",
)
def test_handing_bytes_out_copies_none(make_handle: MakeHandle) -> None:
    handle = make_handle("")
    handle.deserialize(to_tensor(b"kernels"))
    addresses = {getattr(handle.serialize(), "const_data_ptr")() for _ in range(3)}
    assert len(addresses) == 1


def test_an_impossible_path_is_refused(make_handle: MakeHandle) -> None:
    handle = make_handle("a\0b")
    with pytest.raises(RuntimeError, match="NUL in it, after 'a'"):
        handle.load()


def test_a_load_or_save_within_another_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the Python runtime can run Python code, such as a signal handler, during a save."""
    handle = handle_of("python", path)
    handle.deserialize(to_tensor(b"kernels"))
    errors = []
    sync = os.fsync

    def save_and_sync(file: int) -> None:
        try:
            handle.save()
        except RuntimeError as error:
            errors.append(str(error))
        sync(file)

    monkeypatch.setattr(os, "fsync", save_and_sync)
    assert handle.save() == 7
    assert set(errors) == {
        f"A load or save of the runtime cache '{path}' can't start during another one on the same "
        "thread"
    }
    assert path.read_bytes() == b"kernels"


def test_a_log_handler_may_save(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    handle = handle_of("python", path)
    handle.deserialize(to_tensor(b"kernels"))
    saved = []

    class SavingHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("Saved"):
                saved.append(handle.save())

    saving = SavingHandler()
    logger = logging.getLogger("torch_tensorrt.runtime")
    logger.addHandler(saving)
    try:
        with caplog.at_level(logging.INFO, logger.name):
            assert handle.save() == 7
    finally:
        logger.removeHandler(saving)
    assert saved == [0]


def test_what_is_logged_says_where(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The Python runtime's records wait for the lock. See torchtrt_cache/unlocked_logger.py."""
    handle = handle_of("python", path)
    handle.deserialize(to_tensor(b"kernels"))
    with caplog.at_level(logging.INFO, "torch_tensorrt.runtime"):
        assert handle.save() == 7
    assert [record.filename for record in caplog.records] == ["runtime_cache_file.py"]
