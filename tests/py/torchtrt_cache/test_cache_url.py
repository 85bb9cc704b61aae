"""URLs of runtime caches, and texts that are not valid URLs."""

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
        ("gs://bucket/a/b/c", "gs://bucket/a/b/c/"),
        ("az://container/a", "az://container/a/"),
        ("S3://bucket/prefix", "s3://bucket/prefix/"),
        ("s3://bucket/a%20b/", "s3://bucket/a%20b/"),
        ("s3://bucket/\u00fc/..a/", "s3://bucket/\u00fc/..a/"),
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
    "value", ["0.00001", "3600", "3599.9999999", "0.1", "123.4567", "0", "15", "2.50"]
)
def test_its_text_means_the_same(value: str) -> None:
    url = CacheURL.parse(f"s3://b/p/?mode=read&start_timeout={value}")
    assert url.start_timeout == float(value)
    assert CacheURL.parse(str(url)) == url


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
        ("s3://bucket/?start_timeout=3600.1", "up to 3600"),
        ("s3://bucket/?start_timeout=" + "9" * 400, "up to 3600"),
        ("s3://bucket/?mode=read&mode=write", "'mode'"),
        ("s3://bucket/?start_timeout=1&start_timeout=1", "'start_timeout'"),
        ("s3://bucket//", "empty names"),
        ("s3://bucket//prefix/", "empty names"),
        ("s3://bucket/prefix//", "empty names"),
        ("s3://bucket/a//b/", "empty names"),
        ("s3://bucket/a%2f%2Fb/", "empty names"),
        ("s3://bucket/../b/", "'..'"),
        ("s3://bucket/a/.", "'.'"),
        ("s3://bucket/a/%2e%2e/", "'..'"),
        ("s3://bucket/a%0ab/", "control characters"),
        ("s3://bucket/a\tb/", "a control character"),
        ("s3://bucket/a\n", "a control character"),
        ("s3://bucket/a%ff/", "UTF-8"),
        ("s3://[bucket/", "a valid URL"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str) -> None:
    with pytest.raises(ValueError, match="expected") as raised:
        CacheURL.parse(text)
    assert repr(text.partition("?")[0]) in str(raised.value)
    assert named in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "s3://key:secret@bucket/prefix",
        "s3://key:secret@bucket/a\tb",
        "s3://key:secret@[bucket/prefix",
        "s3://key:secret@bucket\u2100/prefix",
        "https://key:secret@host/bucket",
        "https://account.blob.core.windows.net/container?sig=secret",
        "az://container/?sig=secret",
        "az://container/?mode=readonly&sig=secret",
        "az://container/a//b?sig=secret",
        "file:///d?sig=secret",
    ],
)
def test_no_message_has_a_secret(text: str) -> None:
    for parse in (CacheURL.parse, directory_of_file_url):
        try:
            assert parse(text) is None
        except ValueError as error:
            assert "secret" not in str(error)


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
    assert repr(text.partition("?")[0]) in str(raised.value)


def test_a_file_url_that_is_no_text_is_named() -> None:
    with pytest.raises(ValueError, match="'file:///a%ff', expected valid UTF-8"):
        directory_of_file_url("file:///a%ff")
