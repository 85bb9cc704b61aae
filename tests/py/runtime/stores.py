"""The stores of both runtimes behind one interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import torch_tensorrt  # noqa: F401  loads the library that registers the C++ store
from torchtrt_cache.file_lock import LockWaits
from torchtrt_cache.kinds import is_empty
from torchtrt_cache.runtime_cache_file import (
    FileGeneration,
    Replaced,
    RuntimeCacheFile,
    Turn,
)


class Store:
    """RuntimeCacheFile of one runtime, with bytes in place of views."""

    def __init__(
        self, runtime: str, path: Path | str, lock_timeout: float = 10.0
    ) -> None:
        self._is_python = runtime == "python"
        self._path = str(path)
        self._file: Any
        if self._is_python:
            self._file = RuntimeCacheFile(self._path, LockWaits(lock_timeout))
        else:
            make = torch.classes.tensorrt_stores.RuntimeCacheFile
            self._file = make(self._path, lock_timeout)

    def is_empty(self) -> bool:
        if self._is_python:
            return is_empty(self._path)
        return bool(self._file.is_empty())

    def read(self) -> tuple[bytes, FileGeneration] | None:
        contents = self._file.read()
        if contents is None:
            return None
        data, generation = contents
        return (
            bytes(data if self._is_python else data.numpy()),
            FileGeneration(*generation),
        )

    def replace(
        self, data: bytes, expected: FileGeneration | None = None
    ) -> Replaced | None:
        if self._is_python:
            replaced = self._file.replace(memoryview(data), expected)
        else:
            view = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            replaced = self._file.replace(view, expected)
        if replaced is None:
            return None
        generation, is_written, in_place = replaced
        return Replaced(FileGeneration(*generation), is_written, in_place)

    @contextmanager
    def wait_for_turn(self, data: bytes = b"") -> Iterator[Turn]:
        if self._is_python:
            with self._file.wait_for_turn(memoryview(data)) as turn:
                yield turn
        else:
            view = torch.frombuffer(bytearray(data or b"-"), dtype=torch.uint8)
            turn = self._file.wait_for_turn(view[: len(data)])
            yield Turn(turn.is_saved(), turn.offers())
            turn.release()


def write(store: Store, data: bytes) -> Replaced:
    """Writes `data` over whatever is there."""
    contents = store.read()
    replaced = store.replace(data, contents[1] if contents else None)
    assert replaced is not None and replaced.is_written
    return replaced
