"""Reads and writes all bytes of a binary stream, or raises an error that says why not."""

from __future__ import annotations

import io
from typing import Protocol

_CHUNK_SIZE = 4 << 20  # bytes


class Reader(Protocol):
    """A binary stream, or an object that can be read like one."""

    def read(self, size: int, /) -> bytes | None: ...


class Writer(Protocol):
    """A binary stream, or an object that can be written like one."""

    def write(self, data: memoryview, /) -> int | None: ...


def read_all(stream: Reader) -> bytearray:
    """Returns the bytes of the stream, from its position to its end.

    Raises:
        TypeError: It is a text stream.
        BlockingIOError: It is a non-blocking stream that has no bytes yet.
    """
    _check_binary(stream)
    data = bytearray()
    while True:
        # Read in chunks, because one read() of everything would keep it in memory twice.
        chunk = stream.read(_CHUNK_SIZE)
        if chunk is None:
            raise BlockingIOError(f"{stream!r} has no bytes yet: it does not block")
        if not isinstance(chunk, bytes | bytearray | memoryview):
            raise _not_binary(stream)
        if not chunk:
            return data
        data += chunk


def write_all(stream: Writer, data: memoryview) -> None:
    """Writes all bytes. Neither flushes nor closes the stream.

    Raises:
        TypeError: It is a text stream.
        OSError: It takes no more bytes.
    """
    _check_binary(stream)
    done = 0
    while done < len(data):
        try:
            written = stream.write(data[done:])
        except TypeError as error:
            raise _not_binary(stream) from error
        if written is None and not isinstance(stream, io.RawIOBase):
            return  # a writer that returns nothing; only with io's raw streams None means 0 bytes
        if not written:
            raise OSError(f"{stream!r} took {done} of {len(data)} bytes and no more")
        done += written


def _check_binary(stream: object) -> None:
    if isinstance(stream, io.TextIOBase):  # it would decode what it reads
        raise _not_binary(stream)


def _not_binary(stream: object) -> TypeError:
    return TypeError(
        f"A runtime cache consists of bytes, and {stream!r} is not a binary stream"
    )
