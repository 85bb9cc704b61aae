"""Brings the kernels of an object store to a directory, before processes start.

    torchtrt-cache pull URL DIR [--all] [--timeout SECONDS]

Pulls the kinds of this machine. For one that URL and DIR both lack, pulls that of the newest older
driver, which a process can start with. With --all, or on a machine without a GPU, pulls all kinds.
Creates DIR if it is missing, but not the directory above it.

If the file of a kind has kernels that the object may lack, the two are merged, which needs a GPU of
that kind. Without one, only a file is replaced that is as the last pull or push left it; all others
stay as they are.

Prints a line for each kind. Exit status: 0; 1 after an error of the store or the disk, or if
TensorRT-RTX can't merge the two; 2 for wrong arguments; 3 if a kind was not merged, for want of a
GPU. Errors of one kind do not keep the others from being pulled.
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
    """Of the command `torchtrt-cache pull`."""
    add_url(parser, cache_url)
    add_directory(parser)
    parser.add_argument(
        "--all", action="store_true", help="pull the kinds of other machines, too"
    )
    add_timeout(parser)


def run(options: argparse.Namespace) -> int:
    """The command `torchtrt-cache pull`; returns its exit status."""
    if not is_ready(options.directory, is_created=True):
        return FAILED
    transfers = KindTransfers(options.url, options.directory, options.timeout)
    with closing(transfers):
        transfers.pull(options.all)
    transfers.finish()
    return transfers.status
