"""URLs of runtime caches on object stores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

_SCHEMES = ("s3", "gs", "az")
_MODES = ("read", "write")
_TIMEOUTS = ("first_byte_timeout", "start_timeout")
_LONGEST_TIMEOUT = 3600  # seconds
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class CacheURL:
    """A prefix on an object store, with one object per kind of machine.

    Attributes:
        url: Without its query. Ends in a slash.
        is_read_only: Whether nothing may be written there.
        first_byte_timeout: How long the start of an engine waits for the first byte, in seconds.
        start_timeout: How long it waits in total, in seconds.
    """

    url: str
    is_read_only: bool = False
    # A start may wait 2 s for the first byte, and 15 s in all. The rest is for its other work.
    first_byte_timeout: float = 1.9
    start_timeout: float = 14.9

    @classmethod
    def parse(cls, text: str) -> CacheURL:
        """Parses a URL such as `s3://bucket/prefix/?mode=read`.

        The keys of the query are `mode` (`read` or `write`, the default), `first_byte_timeout` and
        `start_timeout`.

        Raises:
            ValueError: The text is not such a URL.
        """
        parts = _split(text)
        shown = _shown(text)
        if parts.scheme not in _SCHEMES:
            schemes = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
            raise ValueError(
                f"The URL of a runtime cache is {shown}, expected one of {schemes} or file://"
            )
        expected = f"expected {parts.scheme}://BUCKET/PREFIX/"
        if "@" in parts.netloc:
            raise ValueError(
                f"The URL of a runtime cache names a user, {expected}: credentials come from the "
                "environment"
            )
        if not parts.netloc or parts.fragment:
            raise ValueError(
                f"The URL of a runtime cache is {shown}, {expected} without a fragment"
            )
        path = parts.path.rstrip("/")
        names = _decoded(parts.path, text).removesuffix("/").split("/")[1:]
        if {"", ".", ".."}.intersection(names) or _CONTROLS.search("".join(names)):
            raise ValueError(
                f"The URL of a runtime cache is {shown}, {expected} without empty names, '.', "
                "'..' and control characters"
            )
        is_read_only = False
        timeouts: dict[str, float] = {}
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        keys = [key for key, _ in pairs]
        for key, value in pairs:
            if key not in ("mode", *_TIMEOUTS) or keys.count(key) > 1:
                # Without the value, because it may be a secret.
                raise ValueError(
                    f"The URL of a runtime cache {shown} has {key!r} in its query, expected mode, "
                    "first_byte_timeout and start_timeout, each at most once"
                )
            if key == "mode" and value in _MODES:
                is_read_only = value == "read"
            elif key in _TIMEOUTS and _is_timeout(value):
                timeouts[key] = float(value)
            else:
                raise ValueError(
                    f"The URL of a runtime cache {shown} has {key!r} with the value {value!r}, "
                    "expected mode=read, mode=write, or first_byte_timeout or start_timeout with "
                    f"a number of seconds up to {_LONGEST_TIMEOUT}"
                )
        return cls(f"{parts.scheme}://{parts.netloc}{path}/", is_read_only, **timeouts)

    def __str__(self) -> str:
        """Returns the text that `parse` turns into this URL again."""
        query = {key: _seconds(getattr(self, key)) for key in _TIMEOUTS}
        defaults = CacheURL(self.url)
        parts = [
            f"{key}={value}"
            for key, value in query.items()
            if getattr(self, key) != getattr(defaults, key)
        ]
        if self.is_read_only:
            parts.insert(0, "mode=read")
        return f"{self.url}?{'&'.join(parts)}" if parts else self.url


def is_url(text: str) -> bool:
    """Whether the place of a runtime cache is given as a URL rather than as a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def directory_of_file_url(text: str) -> str | None:
    """Returns the directory of a `file://` URL, with a slash at its end. None for other URLs.

    Raises:
        ValueError: The URL names another host, has a query or a fragment, or has no absolute path.
    """
    parts = _split(text)
    if parts.scheme != "file":
        return None
    is_plain = not (parts.query or parts.fragment)
    if (
        parts.netloc not in ("", "localhost")
        or not is_plain
        or not parts.path.startswith("/")
    ):
        raise ValueError(
            f"The URL of a runtime cache is {_shown(text)}, expected file:///DIRECTORY/"
        )
    return _decoded(parts.path, text).rstrip("/") + "/"


def _split(text: str) -> SplitResult:
    expected = f"The URL of a runtime cache is {_shown(text)}, expected a valid URL"
    if _CONTROLS.search(text):  # urlsplit would drop it
        raise ValueError(f"{expected} without a control character")
    try:
        return urlsplit(text)
    except ValueError:
        raise ValueError(expected) from None  # the cause's text may contain a secret


def _decoded(path: str, text: str) -> str:
    try:
        return unquote(path, errors="strict")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The URL of a runtime cache is {_shown(text)}, expected valid UTF-8: {error.reason}"
        ) from error


def _shown(text: str) -> str:
    """Returns a URL for a message, without the parts that may contain a secret."""
    return repr(re.sub("//[^/]*@", "//", text.partition("?")[0]))


def _is_timeout(text: str) -> bool:
    is_number = re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) is not None
    return is_number and float(text) <= _LONGEST_TIMEOUT


def _seconds(value: float) -> str:
    """Writes seconds as `parse` accepts them, that is, without an exponent."""
    return f"{Decimal(repr(value)):f}".removesuffix(".0")
