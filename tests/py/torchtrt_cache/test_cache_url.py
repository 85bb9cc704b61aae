"""URLs of runtime caches, and what is none."""

from __future__ import annotations

import pytest

from torchtrt_cache.cache_url import CacheURL, directory_of_file_url, is_url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("s3://bucket", "s3://bucket/"),
        ("s3://bucket/", "s3://bucket/"),
        ("s3://bucket/prefix", "s3://bucket/prefix/"),
        ("s3://bucket/prefix/", "s3://bucket/prefix/"),
        ("s3://bucket/prefix//", "s3://bucket/prefix/"),
        ("gs://bucket/a/b/c", "gs://bucket/a/b/c/"),
        ("az://container/a", "az://container/a/"),
        ("S3://bucket/prefix", "s3://bucket/prefix/"),
        ("s3://bucket/a%20b/", "s3://bucket/a%20b/"),
    ],
)
def test_a_url_ends_in_a_slash(text: str, url: str) -> None:
    parsed = CacheURL.parse(text)
    assert parsed == CacheURL(url)
    assert not parsed.is_read_only
    assert parsed == CacheURL.parse(parsed.url)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("mode=read", CacheURL("s3://b/p/", is_read_only=True)),
        ("mode=write", CacheURL("s3://b/p/")),
        ("first_byte_timeout=0.5", CacheURL("s3://b/p/", first_byte_timeout=0.5)),
        ("start_timeout=30", CacheURL("s3://b/p/", start_timeout=30.0)),
        ("start_timeout=0", CacheURL("s3://b/p/", start_timeout=0.0)),
        (
            "start_timeout=60&mode=read&first_byte_timeout=7",
            CacheURL(
                "s3://b/p/",
                is_read_only=True,
                first_byte_timeout=7.0,
                start_timeout=60.0,
            ),
        ),
    ],
)
@pytest.mark.parametrize("prefix", ["s3://b/p", "s3://b/p/"])
def test_a_query_sets_what_it_names(
    prefix: str, query: str, expected: CacheURL
) -> None:
    assert CacheURL.parse(f"{prefix}?{query}") == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "s3://"),
        ("/directory/", "s3://"),
        ("bucket/prefix", "s3://"),
        ("http://host/bucket", "s3://"),
        ("file:///directory/", "s3://"),
        ("s3:bucket", "BUCKET"),
        ("s3://", "BUCKET"),
        ("s3:///prefix", "BUCKET"),
        ("s3://bucket/prefix#fragment", "fragment"),
        ("s3://bucket/?mode=readonly", "'readonly'"),
        ("s3://bucket/?mode=", "mode=read"),
        ("s3://bucket/?mode", "mode=read"),
        ("s3://bucket/?Mode=read", "'Mode'"),
        ("s3://bucket/?region=eu", "'region'"),
        ("s3://bucket/?start_timeout=-1", "'-1'"),
        ("s3://bucket/?start_timeout=1s", "'1s'"),
        ("s3://bucket/?start_timeout=1e3", "'1e3'"),
        ("s3://bucket/?start_timeout=inf", "'inf'"),
        ("s3://bucket/?first_byte_timeout=nan", "'nan'"),
        ("s3://bucket/?first_byte_timeout=\u0661", "'\u0661'"),
        ("s3://[bucket/", "a valid URL"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str) -> None:
    with pytest.raises(ValueError, match="expected") as raised:
        CacheURL.parse(text)
    assert repr(text) in str(raised.value)
    assert named in str(raised.value)


def test_no_message_has_a_secret() -> None:
    with pytest.raises(ValueError, match="names a user") as raised:
        CacheURL.parse("s3://key:secret@bucket/prefix")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("text", ["s3://b", "file:///d", "x+y-1.z://", "HTTP://h"])
def test_a_scheme_makes_a_url(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize("text", ["", "/d/", "d", "./s3://b", "3s://b", "s3:/b", "://"])
def test_a_path_is_no_url(text: str) -> None:
    assert not is_url(text)


@pytest.mark.parametrize(
    ("text", "directory"),
    [
        ("file:///d", "/d/"),
        ("file:///d/e//", "/d/e/"),
        ("file://localhost/d/", "/d/"),
        ("file:///a%20b/", "/a b/"),
        ("FILE:///d", "/d/"),
        ("file:///", "/"),
        ("s3://bucket/", None),
        ("/d/", None),
    ],
)
def test_a_file_url_means_a_directory(text: str, directory: str | None) -> None:
    assert directory_of_file_url(text) == directory


@pytest.mark.parametrize(
    "text",
    ["file://host/d", "file:d", "file://", "file:///d?mode=read", "file:///d#e"],
)
def test_what_is_wrong_with_a_file_url_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="expected file:///DIRECTORY/") as raised:
        directory_of_file_url(text)
    assert repr(text) in str(raised.value)
