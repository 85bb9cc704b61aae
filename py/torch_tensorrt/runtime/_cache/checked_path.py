"""What may name the file of a runtime cache."""

from __future__ import annotations

import os
import re

from torchtrt_cache.cache_url import CacheURL, directory_of_file_url, is_url


def checked_path(path: object, *, may_be_empty: bool = False) -> str:
    """`path` as a str, which either runtime can take.

    Raises:
        TypeError: it is neither a str nor an os.PathLike of one.
        ValueError: it can be no file's, or is not valid UTF-8.
    """
    checked = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(checked, str):
        raise TypeError(
            f"The path of a runtime cache is a str or an os.PathLike of one, got {path!r}"
        )
    if not (checked or may_be_empty):
        raise ValueError("The path of a runtime cache is empty")
    if "\0" in checked:
        raise ValueError(f"The path of a runtime cache has a NUL in it: {checked!r}")
    try:
        checked.encode()
    except UnicodeEncodeError as error:  # which the C++ runtime can't take
        raise ValueError(
            f"The path of a runtime cache is not valid UTF-8: {checked!r}"
        ) from error
    return checked


def checked_place(place: object, *, may_be_empty: bool = False) -> str:
    """A path as `checked_path` returns it, or a URL that `CacheURL.parse` takes.

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
            f"The URL of a runtime cache is a str, got {place!r}, which lacks a slash"
        )
    return checked
