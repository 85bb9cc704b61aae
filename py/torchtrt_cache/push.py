"""Uploads the kernels of a directory to an object store, for other machines.

    torchtrt-cache push DIR URL [--timeout SECONDS]

Pushes every kind's file in DIR.

If the object of a kind has kernels that the file may lack, merges the two and writes both. This
needs a GPU of that kind. Without one, writes an object only if it is missing, or if the file has
all its kernels. Never replaces an object that can't be merged.

Prints a line for each kind. Exit status: 0; 1 after an error of the store or the disk, or if
TensorRT-RTX can't merge the two; 2 for wrong arguments; 3 if a kind was not merged because this
machine lacks its GPU. If one kind fails, the others are still pushed.
"""

from __future__ import annotations

import argparse
from contextlib import closing

from torchtrt_cache.kind_transfers import (
    FAILED,
    KindTransfers,
    add_directory,
    add_timeout,
    add_url,
    is_ready,
    writable_cache_url,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `torchtrt-cache push`."""
    add_directory(parser)
    add_url(parser, writable_cache_url)
    add_timeout(parser)


def run(options: argparse.Namespace) -> int:
    """Runs `torchtrt-cache push` and returns its exit status."""
    if not is_ready(options.directory, is_created=False):
        return FAILED
    transfers = KindTransfers(options.url, options.directory, options.timeout)
    with closing(transfers):
        transfers.push_all()
    transfers.finish()
    return transfers.status
