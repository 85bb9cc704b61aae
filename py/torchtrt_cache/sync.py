"""Keeps a directory and an object store in step, once or until it is stopped.

    torchtrt-cache sync DIR URL [--watch] [--timeout SECONDS]

Does what `pull` does, and then what `push` does. With mode=read in URL, only pulls.

With --watch, continues until SIGTERM or SIGINT. Pushes a kind when its file has not changed for
5 s, or 60 s after its first change if it keeps changing, and pulls every 60 s. When stopped, pushes
once more, within 8 s. While the store fails, tries again at pauses that grow to 10 minutes, and
prints each reason once. --timeout then limits each pull and each push.

Prints a line for each kind, and with --watch also for each later transfer. Exit status: the same as
for `pull` and `push`; with --watch that of the last push, or 0 with mode=read.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections import defaultdict
from contextlib import closing, suppress

from torchtrt_cache.kind_transfers import (
    FAILED,
    KindTransfers,
    add_directory,
    add_timeout,
    add_url,
    cache_url,
    is_ready,
)
from torchtrt_cache.upload_schedule import UploadSchedule

_LONGEST_PAUSE = 10.0  # seconds between looks at the directory
_PULL_PAUSE = 60.0  # seconds
_LONGEST_PULL_PAUSE = 600.0  # seconds, while pulls fail
_LAST_PUSH = 8.0  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `torchtrt-cache sync`."""
    add_directory(parser)
    add_url(parser, cache_url)
    parser.add_argument(
        "--watch", action="store_true", help="continue until SIGTERM or SIGINT"
    )
    add_timeout(parser)


def run(options: argparse.Namespace) -> int:
    """Runs `torchtrt-cache sync` and returns its exit status."""
    if not is_ready(options.directory, is_created=True):
        return FAILED
    if options.watch:
        return _watch(options)
    transfers = KindTransfers(options.url, options.directory, options.timeout)
    with closing(transfers):
        _sync(transfers, options)
    return transfers.status


def _sync(transfers: KindTransfers, options: argparse.Namespace) -> None:
    transfers.pull()
    if not options.url.is_read_only:
        transfers.push_all()
    transfers.finish()


def _watch(options: argparse.Namespace) -> int:
    """Returns the exit status when the process is told to stop."""
    with suppress(KeyboardInterrupt):
        stop = _Stop()
        transfers = KindTransfers(
            options.url, options.directory, options.timeout, repeats_reasons=False
        )
        with closing(transfers):
            _sync(transfers, options)
            _go_on(transfers, options, stop)
    if options.url.is_read_only:
        return 0
    last = KindTransfers(options.url, options.directory, _LAST_PUSH)
    with closing(last):
        last.push_all()
    return last.status


class _Stop:
    """Makes the first SIGTERM or SIGINT raise KeyboardInterrupt. Later ones do nothing."""

    def __init__(self) -> None:
        self.is_set = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        if not self.is_set:
            self.is_set = True
            raise KeyboardInterrupt


def _go_on(transfers: KindTransfers, options: argparse.Namespace, stop: _Stop) -> None:
    schedules: dict[str, UploadSchedule] = defaultdict(UploadSchedule)
    pull_pause = _PULL_PAUSE
    next_pull = time.monotonic() + pull_pause
    while not stop.is_set:  # Python drops exceptions raised in a finalizer
        if time.monotonic() >= next_pull:
            transfers.restart(options.timeout)
            is_here = transfers.pull()
            pull_pause = (
                _PULL_PAUSE if is_here else min(2 * pull_pause, _LONGEST_PULL_PAUSE)
            )
            next_pull = time.monotonic() + pull_pause
        wake = min(next_pull, time.monotonic() + _LONGEST_PAUSE)
        if not options.url.is_read_only:
            for name in {*transfers.names_of_files(), *schedules}:
                transfers.restart(options.timeout)
                wake = min(wake, _look(transfers, name, schedules[name]))
        time.sleep(max(0.0, wake - time.monotonic()))


def _look(transfers: KindTransfers, name: str, schedule: UploadSchedule) -> float:
    """Looks at the file and pushes it if that is due. Returns when to do so next."""
    now = time.monotonic()
    if schedule.next_look(now) <= now:
        schedule.saw(now, *transfers.look_at(name))
    due = schedule.due()
    if due is not None and due <= now:
        if transfers.push(name):
            schedule.done(time.monotonic())
        else:
            schedule.failed(time.monotonic())
    return schedule.wake(time.monotonic())
