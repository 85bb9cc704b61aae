"""The record beside a cache file, including broken ones."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from torchtrt_cache.objects import ObjectGeneration
from torchtrt_cache.records import Record, read_record, record_path_of, write_record
from torchtrt_cache.runtime_cache_file import FileGeneration

URL = "s3://bucket/prefix/"
VALUES: dict[str, Any] = {
    "url": URL,
    "object": ["etag", None],
    "file": [1, 2, 3, 4],
    "is_uploaded": True,
    "has_object": True,
}
RECORD = Record(
    URL,
    ObjectGeneration("etag", None),
    FileGeneration(1, 2, 3, 4),
    is_uploaded=True,
    has_object=True,
)


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache.bin")


def names_beside(cache: str) -> list[str]:
    return [path.name for path in Path(cache).parent.iterdir()]


def without(key: str) -> str:
    return json.dumps({k: v for k, v in VALUES.items() if k != key})


def having(**changes: Any) -> str:
    return json.dumps({**VALUES, **changes})


@pytest.mark.parametrize("generation", [("e", "v"), ("e", None), (None, "v")])
@pytest.mark.parametrize("is_uploaded", [False, True])
@pytest.mark.parametrize("has_object", [False, True])
def test_is_read_as_it_was_written(
    generation: tuple[str | None, str | None],
    is_uploaded: bool,
    has_object: bool,
    cache: str,
) -> None:
    file = FileGeneration(2**63, 2**63, 0, 2**63)
    record = Record(URL, ObjectGeneration(*generation), file, is_uploaded, has_object)
    write_record(cache, record)
    assert read_record(cache, URL) == record
    assert names_beside(cache) == ["cache.bin.remote"]


def test_a_missing_one_is_none(cache: str) -> None:
    assert read_record(cache, URL) is None


def test_one_of_another_url_is_none(cache: str) -> None:
    write_record(cache, RECORD)
    assert read_record(cache, "s3://bucket/other/") is None


def test_the_values_of_these_tests_are_a_record(cache: str) -> None:
    Path(record_path_of(cache)).write_text(json.dumps(VALUES))
    assert read_record(cache, URL) == RECORD


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0" * 1000,
        "null",
        "[]",
        "1",
        '"text"',
        "{",
        json.dumps(VALUES)[:-1],
        "[" * 100_000,
        '{"url":' * 100_000,
        *map(without, VALUES),
        having(object=None),
        having(object=[]),
        having(object=["a", "b", "c"]),
        having(file=[1, 2, 3]),
        having(file=[1, 2, 3, 4, 5]),
        having(file=[1, 2, 3, None]),
        having(file=[1, 2, 3, "x"]),
        having(file=[1, 2, 3, float("inf")]),
        having(file=[1, 2, 3, float("nan")]),
        having(file=[1, 2, 3, [4]]),
        having(file=7),
        having(url=None),
        having().replace("4]", "1e999]"),
        having().replace("4]", "9" * 10_000 + "]"),
    ],
)
def test_garbage_is_none(text: str, cache: str) -> None:
    Path(record_path_of(cache)).write_text(text)
    assert read_record(cache, URL) is None
    write_record(cache, RECORD)
    assert read_record(cache, URL) == RECORD


def test_bytes_that_are_no_text_are_none(cache: str) -> None:
    Path(record_path_of(cache)).write_bytes(bytes(range(256)))
    assert read_record(cache, URL) is None


@pytest.mark.parametrize("key", ["is_uploaded", "has_object"])
@pytest.mark.parametrize("value", [1, "true", None, []])
def test_only_true_is_true(key: str, value: object, cache: str) -> None:
    Path(record_path_of(cache)).write_text(having(**{key: value}))
    record = read_record(cache, URL)
    assert record is not None
    assert getattr(record, key) is False


def test_a_directory_in_its_place_is_none_and_stays(cache: str) -> None:
    Path(record_path_of(cache)).mkdir()
    assert read_record(cache, URL) is None
    write_record(cache, RECORD)
    assert names_beside(cache) == ["cache.bin.remote"]


def test_what_a_killed_writer_left_is_replaced(cache: str) -> None:
    Path(f"{record_path_of(cache)}.tmp").write_text("half of")
    write_record(cache, RECORD)
    assert read_record(cache, URL) == RECORD
    assert names_beside(cache) == ["cache.bin.remote"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o775, 0o444])
def test_nobody_who_can_not_use_the_cache_reads_it(mode: int, cache: str) -> None:
    Path(cache).touch()
    Path(cache).chmod(mode)
    write_record(cache, RECORD)
    record = Path(record_path_of(cache)).stat()
    assert stat.S_IMODE(record.st_mode) == mode & 0o660 | 0o600


def test_without_a_cache_only_its_owner_reads_it(cache: str) -> None:
    write_record(cache, RECORD)
    record = Path(record_path_of(cache)).stat()
    assert stat.S_IMODE(record.st_mode) == 0o600


def test_it_belongs_to_whom_the_cache_belongs(cache: str) -> None:
    Path(cache).touch()
    try:
        os.chown(cache, 1234, 2345)
    except OSError:
        pytest.skip("this process can't change the owner of files")
    write_record(cache, RECORD)
    record = Path(record_path_of(cache)).stat()
    assert (record.st_uid, record.st_gid) == (1234, 2345)


def test_a_directory_that_is_gone_is_no_error(tmp_path: Path) -> None:
    write_record(str(tmp_path / "gone" / "cache.bin"), RECORD)
    assert not list(tmp_path.iterdir())
