"""Checks the paths and URLs of runtime caches."""

from __future__ import annotations

import os
import re

from torchtrt_cache.cache_url import CacheURL, directory_of_file_url, is_url


def checked_path(path: object, *, may_be_empty: bool = False) -> str:
    """Returns `path` as a str that both runtimes accept.

    Raises:
        TypeError: It is neither a str nor an os.PathLike of one.
        ValueError: It can't be the path of a file, or is not valid UTF-8.
    """
    checked = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(checked, str):
        raise TypeError(
            f"The path of a runtime cache must be a str or an os.PathLike of one, got {path!r}"
        )
    if not (checked or may_be_empty):
        raise ValueError("The path of a runtime cache is empty")
    if "\0" in checked:
        raise ValueError(f"The path of a runtime cache has a NUL in it: {checked!r}")
    try:
        checked.encode()
    except UnicodeEncodeError as error:  # the C++ runtime would not accept it
        raise ValueError(
            f"The path of a runtime cache is not valid UTF-8: {checked!r}"
        ) from error
    return checked


def checked_place(place: object, *, may_be_empty: bool = False) -> str:
    """Returns a path as `checked_path` does, or a URL that `CacheURL.parse` accepts.

    A `file://` URL becomes the path of its directory.

    Raises:
        TypeError, ValueError: As `checked_path` and `CacheURL.parse`.
    """
    checked = checked_path(place, may_be_empty=may_be_empty)
    if is_url(checked):
        directory = directory_of_file_url(checked)
        return checked_path(directory or str(CacheURL.parse(checked)))
    if isinstance(place, os.PathLike) and re.match("(s3|gs|az|file):/", checked):
        raise ValueError(
            f"The URL of a runtime cache must be a str, got {place!r}, which lacks a slash"
        )
    return checked
