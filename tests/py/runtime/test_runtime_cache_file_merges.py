"""What RuntimeCacheFile of the Python runtime reads, and asks to merge, while others write.

The same for the C++ runtime is in tests/cpp/test_runtime_cache_file.cpp.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from torch_tensorrt.runtime._cache.runtime_cache_file import RuntimeCacheFile


def concatenate(disk: memoryview, ours: memoryview) -> memoryview:
    return memoryview(bytes(disk) + bytes(ours))


class MergeError(Exception):
    pass


def test_what_a_merge_raises_ends_the_save_and_the_next_loses_nothing(
    path: Path,
) -> None:
    def fail(disk: memoryview, ours: memoryview) -> memoryview:
        raise MergeError

    path.write_bytes(b"theirs,")
    file = RuntimeCacheFile(str(path), 0)
    with pytest.raises(MergeError):
        file.save(memoryview(b"ours"), fail)
    assert file.save(memoryview(b"ours"), concatenate) == 11
    assert path.read_bytes() == b"theirs,ours"


def test_others_may_save_during_the_first_merge_and_wait_for_the_second(
    path: Path,
) -> None:
    path.write_bytes(b"0")
    outcomes: list[str] = []

    def merge(disk: memoryview, ours: memoryview) -> memoryview:
        theirs = memoryview(bytes(disk) + b"+%d" % (len(outcomes) + 1))
        try:
            RuntimeCacheFile(str(path), 0.02).save(theirs, lambda _, ours: ours)
            outcomes.append("saved")
        except RuntimeError as error:
            outcomes.append(str(error))
        return concatenate(disk, ours)

    assert RuntimeCacheFile(str(path)).save(memoryview(b",ours"), merge) == 8
    assert path.read_bytes() == b"0+1,ours"
    saved, refused = outcomes
    assert saved == "saved"
    assert refused == (
        f"Can't save the runtime cache '{path}': another holder kept the lock '{path}.lock' for "
        "20 ms"
    )


def test_a_merge_may_return_its_arguments_or_a_part_or_nothing(path: Path) -> None:
    path.write_bytes(b"theirs")
    file = RuntimeCacheFile(str(path), 0)
    ours = memoryview(b"ours")
    assert file.save(ours, lambda disk, _: disk) == 0
    assert file.save(ours, lambda *_: memoryview(b"")) == 0
    assert file.save(ours, lambda disk, _: disk[:3]) == 3
    assert path.read_bytes() == b"the"
    assert file.save(ours, lambda _, ours: ours) == 4
    # What it wrote as it was is what it has.
    assert file.save(memoryview(b"ours again"), lambda *_: memoryview(b"")) == 10


def test_the_save_after_a_merge_loses_nothing(path: Path) -> None:
    path.write_bytes(b"theirs,")
    file = RuntimeCacheFile(str(path), 0)
    file.save(memoryview(b"a"), concatenate)
    file.save(memoryview(b"b"), concatenate)
    assert path.read_bytes() == b"theirs,ab"


def test_a_file_that_changes_while_it_is_read_is_read_again(path: Path) -> None:
    path.write_bytes(b"0123456789")
    for contents in (b"short", b"much longer"):
        buffers: list[bytearray] = []

        def allocate(
            size: int, contents: bytes = contents, buffers: list[bytearray] = buffers
        ) -> memoryview:
            if not buffers:
                path.write_bytes(contents)
            buffers.append(bytearray(size))
            return memoryview(buffers[-1])

        assert RuntimeCacheFile(str(path), 0).load(allocate) == len(contents)
        assert bytes(buffers[-1]) == contents
        assert len(buffers) == 2


def test_a_file_that_never_stops_changing_is_an_error(path: Path) -> None:
    path.write_bytes(b"0")

    def allocate(size: int) -> memoryview:
        path.write_bytes(bytes(size + 1))
        return memoryview(bytearray(size))

    with pytest.raises(RuntimeError, match=f"read '{path}': it kept changing"):
        RuntimeCacheFile(str(path), 0).load(allocate)
