"""Downloads kernels from an object store to a directory, before processes start.

    torchtrt-cache pull URL DIR [--all] [--timeout SECONDS]

Pulls the kinds of this machine. If URL and DIR both lack one, pulls that of the newest older driver
instead, with which a process can start. With --all, or on a machine without a GPU, pulls all kinds.
Creates DIR if it is missing, but not the directory above it.

If the file of a kind has kernels that the object may lack, merges the two. This needs a GPU of that
kind. Without one, replaces only files that have not changed since the last pull or push, and leaves
all others as they are.

Prints a line for each kind. Exit status: 0; 1 after an error of the store or the disk, or if
TensorRT-RTX can't merge the two; 2 for wrong arguments; 3 if a kind was not merged because this
machine lacks its GPU. If one kind fails, the others are still pulled.
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
    cache_url,
    is_ready,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `torchtrt-cache pull`."""
    add_url(parser, cache_url)
    add_directory(parser)
    parser.add_argument(
        "--all", action="store_true", help="also pull the kinds of other machines"
    )
    add_timeout(parser)


def run(options: argparse.Namespace) -> int:
    """Runs `torchtrt-cache pull` and returns its exit status."""
    if not is_ready(options.directory, is_created=True):
        return FAILED
    transfers = KindTransfers(options.url, options.directory, options.timeout)
    with closing(transfers):
        transfers.pull(options.all)
    transfers.finish()
    return transfers.status
