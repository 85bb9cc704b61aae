"""What was last in step: a cache file and the object that it shares kernels with."""

# A path is used as written, which pathlib would change.
# ruff: noqa: PTH105, PTH108, PTH123

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass

from torchtrt_cache.objects import ObjectGeneration
from torchtrt_cache.runtime_cache_file import FileGeneration
from torchtrt_cache.unlocked_logger import unlocked_logger

_LOGGER = unlocked_logger("records")


@dataclass(frozen=True)
class Record:
    """A generation of a cache file that has all kernels of a generation of an object.

    Attributes:
        url: That of the object's prefix.
        object: The object's generation.
        file: The file's.
        is_uploaded: Whether that object has all kernels of that file, too.
    """

    url: str
    object: ObjectGeneration
    file: FileGeneration
    is_uploaded: bool


def record_path_of(cache: str) -> str:
    """The file with the record of a cache file."""
    return cache + ".remote"


def read_record(cache: str, url: str) -> Record | None:
    """None if there is none for that URL that can be read."""
    try:
        with open(record_path_of(cache), encoding="utf-8") as file:
            values = json.load(file)
        e_tag, version = values["object"]
        record = Record(
            str(values["url"]),
            ObjectGeneration(e_tag, version),
            FileGeneration(*map(int, values["file"])),
            values["is_uploaded"] is True,
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if record.url == url else None


def write_record(cache: str, record: Record) -> None:
    """Replaces the record of a cache file. Without one, no more than time is lost."""
    path = record_path_of(cache)
    temporary = f"{path}.{os.getpid()}-{secrets.token_hex(8)}"
    values = {
        "url": record.url,
        "object": record.object,
        "file": record.file,
        "is_uploaded": record.is_uploaded,
    }
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            json.dump(values, file)
        os.replace(temporary, path)
    except OSError as error:
        _LOGGER.debug("Can't write '%s': %s", path, error.strerror)
        with suppress(OSError):
            os.unlink(temporary)
