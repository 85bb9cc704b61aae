"""Records of what the last transfer between a cache file and its object found."""

# Paths are used as written. pathlib would change them.
# ruff: noqa: PTH105, PTH108, PTH116, PTH123

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass

from torchtrt_cache.file_lock import take_over_owner
from torchtrt_cache.objects import ObjectGeneration
from torchtrt_cache.runtime_cache_file import FileGeneration
from torchtrt_cache.unlocked_logger import unlocked_logger

_LOGGER = unlocked_logger("records")


@dataclass(frozen=True)
class Record:
    """What a transfer found out about a generation of a cache file and one of its object.

    Attributes:
        url: The URL of the object's prefix.
        object: The object's generation.
        file: The file's generation.
        is_uploaded: Whether that object has all kernels of that file.
        has_object: Whether that file has all kernels of that object. If not, the two could not be
            merged.
    """

    url: str
    object: ObjectGeneration
    file: FileGeneration
    is_uploaded: bool
    has_object: bool


def record_path_of(cache: str) -> str:
    """Returns the file with the record of a cache file."""
    return cache + ".remote"


def read_record(cache: str, url: str) -> Record | None:
    """Returns the record for that URL. None if it is missing or can't be read."""
    try:
        with open(record_path_of(cache), encoding="utf-8") as file:
            values = json.load(file)
        e_tag, version = values["object"]
        record = Record(
            str(values["url"]),
            ObjectGeneration(e_tag, version),
            FileGeneration(*map(int, values["file"])),
            values["is_uploaded"] is True,
            values["has_object"] is True,
        )
    # Others may have written the file. Python raises ArithmeticError for an infinite number, and
    # RecursionError for deeply nested lists.
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        ArithmeticError,
        RecursionError,
    ):
        return None
    return record if record.url == url else None


def write_record(cache: str, record: Record) -> None:
    """Replaces the record of a cache file. A failure is only logged, since it costs only time.

    Requires the lock of the file's transfers.
    """
    path = record_path_of(cache)
    temporary = f"{path}.tmp"
    values = {
        "url": record.url,
        "object": record.object,
        "file": record.file,
        "is_uploaded": record.is_uploaded,
        "has_object": record.has_object,
    }
    try:
        with suppress(FileNotFoundError):  # left by a process that was killed
            os.unlink(temporary)
        with open(temporary, "x", encoding="utf-8", opener=_open_for_owner) as file:
            json.dump(values, file)
            _share_as(cache, file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _LOGGER.debug("Can't write '%s': %s", path, error.strerror)
        with suppress(OSError):
            os.unlink(temporary)


def _open_for_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _share_as(cache: str, file: int) -> None:
    """Lets the group that may use the cache read and write a file, but nobody else."""
    with suppress(OSError):
        status = os.stat(cache)
        take_over_owner(file, status)
        os.fchmod(file, status.st_mode & 0o660 | 0o600)


def remove_record(cache: str) -> None:
    """Removes the record of a cache file, because the file or its object is gone."""
    with suppress(OSError):
        os.unlink(record_path_of(cache))
