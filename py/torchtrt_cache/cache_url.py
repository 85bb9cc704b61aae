"""URLs of runtime caches on object stores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

_SCHEMES = ("s3", "gs", "az")
_MODES = ("read", "write")
_TIMEOUTS = ("first_byte_timeout", "start_timeout")


@dataclass(frozen=True)
class CacheURL:
    """A prefix on an object store, which has an object for each kind of machine.

    Attributes:
        url: Without its query. Ends in a slash.
        is_read_only: Whether nothing is ever written there.
        first_byte_timeout: Seconds that the start of an engine waits for the first byte.
        start_timeout: Seconds that it waits in all.
    """

    url: str
    is_read_only: bool = False
    first_byte_timeout: float = 2.0
    start_timeout: float = 15.0

    @classmethod
    def parse(cls, text: str) -> CacheURL:
        """From `s3://bucket/prefix/?mode=read`, for example.

        The keys of the query are `mode` (`read` or `write`, the default), `first_byte_timeout` and
        `start_timeout`.

        Raises:
            ValueError: The text is no such URL.
        """
        parts = _split(text)
        if parts.scheme not in _SCHEMES:
            schemes = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
            raise ValueError(
                f"The URL of a runtime cache is {text!r}, expected one of {schemes} or file://"
            )
        expected = f"expected {parts.scheme}://BUCKET/PREFIX/"
        if "@" in parts.netloc:  # and perhaps a secret, which no message may have
            raise ValueError(
                f"The URL of a runtime cache names a user, {expected}: credentials come from the "
                "environment"
            )
        if not parts.netloc or parts.fragment:
            raise ValueError(
                f"The URL of a runtime cache is {text!r}, {expected} without a fragment"
            )
        is_read_only = False
        timeouts = {}
        for key, value in parse_qsl(parts.query, keep_blank_values=True):
            if key == "mode" and value in _MODES:
                is_read_only = value == "read"
            elif key in _TIMEOUTS and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
                timeouts[key] = float(value)
            else:
                raise ValueError(
                    f"The URL of a runtime cache {text!r} has {key!r} with the value {value!r}, "
                    "expected mode=read, mode=write, or first_byte_timeout or start_timeout with "
                    "a number of seconds"
                )
        url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/"
        return cls(url, is_read_only, **timeouts)

    def __str__(self) -> str:
        """What `parse` makes this of again."""
        query = {key: f"{getattr(self, key):g}" for key in _TIMEOUTS}
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
    """Whether a runtime cache's place is written as a URL, and not as a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def directory_of_file_url(text: str) -> str | None:
    """The directory that a `file://` URL means, with a slash at its end; None for other URLs.

    Raises:
        ValueError: It names another host, has a query or a fragment, or no absolute path.
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
            f"The URL of a runtime cache is {text!r}, expected file:///DIRECTORY/"
        )
    return unquote(parts.path).rstrip("/") + "/"


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError as error:
        raise ValueError(
            f"The URL of a runtime cache is {text!r}, expected a valid URL: {error}"
        ) from error
