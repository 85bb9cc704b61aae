"""The caches of this process whose place is an object store."""

from __future__ import annotations

import logging
import math
import multiprocessing
import multiprocessing.util
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import Protocol

import torch

from torch_tensorrt.runtime._cache.default_cache_path import local_tier_of
from torch_tensorrt.runtime._cache.exit_deadline import begin_exit, exit_deadline
from torch_tensorrt.runtime._cache.forks import start_over_in_children
from torch_tensorrt.runtime._cache.merger import Merger
from torch_tensorrt.runtime._cache.stream_capture import relaxed_stream_capture
from torch_tensorrt.runtime._cache.tensor_memory import memory_of, tensor_of
from torchtrt_cache.cache_url import CacheURL
from torchtrt_cache.file_lock import deferred_calls
from torchtrt_cache.kinds import RuntimeCacheKind, file_in, kinds_of_machine
from torchtrt_cache.runtime_cache_file import generation_at
from torchtrt_cache.store_process import StoreProcess, check_library
from torchtrt_cache.transfer import CannotMergeError, Outcome, Transfer, Transfers
from torchtrt_cache.unlocked_logger import unlocked_logger
from torchtrt_cache.upload_schedule import UploadSchedule

_LOGGER = unlocked_logger("remote_tier")

_LONGEST_TRANSFER = 600.0  # seconds, as the others
_FIRST_PAUSE = 10.0  # after a failed fetch
_LONGEST_PAUSE = 600.0


class _Handle(Protocol):
    """What merges by its scratch cache: a handle of either runtime."""

    def merged(
        self, theirs: torch.Tensor, ours: torch.Tensor, file_name: str, /
    ) -> torch.Tensor: ...


class _Cache(Protocol):
    @property
    def _handle(self) -> _Handle: ...


class RemoteTier:
    """Keeps a directory of this machine in step with the objects under a URL.

    The directory is the local tier: the caches of this process load from it and save to it, and so
    do those of others. A thread fetches what an engine can start with, and uploads what was saved
    since: once nothing has been saved for a while, at the latest a minute after the first save, and
    at the end of the process.

    A store that fails costs freshness alone. The first failure since the last success is logged as
    a warning.

    Thread safety: any method from any thread; `push_within` from signal handlers, too.

    Attributes:
        url: The store.
        directory: The local tier, with a separator at its end.
    """

    def __init__(self, url: CacheURL) -> None:
        check_library()
        self.url = url
        self.directory = local_tier_of(url.url)
        self._start_over()
        start_over_in_children(self)

    def _start_over(self) -> None:
        self._caches: weakref.WeakValueDictionary[int, _Cache] = (
            weakref.WeakValueDictionary()
        )
        self._starting_lock = threading.Lock()
        self._store = StoreProcess(self.url.url)
        self._messages: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._start = -math.inf  # by time.monotonic()
        # Of the fetch at the start.
        self._has_first_byte = threading.Event()
        self._is_fetched = threading.Event()
        self._kinds: list[_Kind] = []
        self._has_warned = False
        self._has_ended = False

    def start_over_in_child(self) -> None:
        """In a child of fork(); see forks.py."""
        self._store.abandon()
        self._start_over()

    def add(self, cache: _Cache) -> None:
        """A cache of this process on the tier, which can merge once an engine uses it."""
        self._caches[id(cache)] = cache

    def begin(self) -> None:
        """Begins to fetch what an engine can start with, with the first call."""
        with deferred_calls(), self._starting_lock:
            if self._thread is not None or exit_deadline() < math.inf:
                return
            thread = threading.Thread(
                target=self._serve, name="torch_tensorrt remote tier", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                self._warn(str(error))
                return
            self._thread, self._start = thread, time.monotonic()
            if multiprocessing.parent_process() is not None:
                # Before CPython 3.13 a worker that was forked ends without atexit's functions. Its
                # caches are saved at priority 0, that is before this.
                multiprocessing.util.Finalize(None, self._end, exitpriority=-1)

    def wait_until_fetched(self) -> None:
        """Waits as long as an engine's start may wait for the store."""
        self.begin()
        if self._thread is None:
            return
        for event, timeout, what in (
            (self._has_first_byte, self.url.first_byte_timeout, "no answer"),
            (self._is_fetched, self.url.start_timeout, "not everything"),
        ):
            if not event.wait(max(0.0, self._start + timeout - time.monotonic())):
                self._warn(f"{what} within {timeout:g} s")
                return

    def push_within(self, seconds: float) -> None:
        """Uploads what the store lacks, and waits for that."""
        if self._thread is None or threading.current_thread() is self._thread:
            return
        done: Future[None] = Future()
        deadline = time.monotonic() + seconds
        self._messages.put(partial(self._push_all, deadline, done))
        if not wait([done], seconds).done:
            self._warn(f"the upload is not done within {round(seconds * 1000)} ms")

    def end(self, deadline: float) -> None:
        """Uploads what the store lacks, and ends the thread for good, by a deadline."""
        self.push_within(max(0.0, deadline - time.monotonic()))
        self._has_ended = True
        self._messages.put(_wake)
        self._store.close()

    def _end(self) -> None:
        self.end(begin_exit())

    def _warn(self, reason: str) -> None:
        level = logging.INFO if self._has_warned or self._has_ended else logging.WARNING
        self._has_warned = True
        _LOGGER.log(
            level,
            "The runtime cache '%s' is not in step with this machine: %s. Nothing is lost: this "
            "machine's kernels are in '%s'",
            self.url.url,
            reason,
            self.directory,
        )

    # What follows runs on the thread.

    def _serve(self) -> None:
        try:
            self._kinds = [_Kind(kind) for kind in kinds_of_machine()]
            self._pull_all()
        finally:
            self._has_first_byte.set()
            self._is_fetched.set()
        while not self._has_ended:
            try:
                message = self._messages.get(timeout=self._pause())
            except queue.Empty:
                self._look()
            else:
                message()

    def _pause(self) -> float | None:
        now = time.monotonic()
        times = [kind.pull_again for kind in self._kinds]
        if not self.url.is_read_only:
            times += [kind.schedule.wake(now) for kind in self._kinds]
        first = min(times, default=math.inf)
        return None if first == math.inf else max(0.0, first - now)

    def _look(self) -> None:
        """Transfers what is due."""
        now = time.monotonic()
        if any(kind.pull_again <= now for kind in self._kinds):
            self._pull_all()
        if self.url.is_read_only:
            return
        for kind in self._kinds:
            if kind.schedule.next_look(now) <= now:
                is_uploaded = self._transfers().is_uploaded(kind.name)
                file = generation_at(file_in(self.directory, kind.kind))
                kind.schedule.saw(now, file, is_uploaded)
            due = kind.schedule.due()
            if due is not None and due <= now:
                self._push(kind, now + _LONGEST_TRANSFER)

    def _push_all(self, deadline: float, done: Future[None]) -> None:
        try:
            for kind in self._kinds:
                if not self.url.is_read_only:
                    self._push(kind, deadline)
        finally:
            done.set_result(None)

    def _push(self, kind: _Kind, deadline: float) -> None:
        merge = partial(self._merge, kind)
        transfers = self._transfers(deadline)
        if transfers.is_uploaded(
            kind.name
        ):  # so that no end waits for the store in vain
            kind.schedule.done(time.monotonic())
            return
        try:
            pushed = transfers.push(kind.name, merge)
        except CannotMergeError as error:
            self._warn(f"nothing is uploaded, since {error}")
            kind.schedule.done(time.monotonic())
        except Exception as error:
            self._warn(_text_of(error))
            kind.schedule.failed(time.monotonic())
        else:
            kind.schedule.done(time.monotonic())
            self._report("Uploaded", pushed)

    def _pull_all(self) -> None:
        for kind in self._kinds:
            if kind.pull_again < math.inf:
                self._pull(kind)

    def _pull(self, kind: _Kind) -> None:
        merge = partial(self._merge, kind)
        transfers = self._transfers()
        try:
            pulled = transfers.pull_kind(kind.kind, merge, self._has_first_byte.set)
        except CannotMergeError as error:
            self._warn(f"nothing is fetched, since {error}")
            kind.pull_again = math.inf
        except Exception as error:
            self._warn(_text_of(error))
            kind.pull_again = time.monotonic() + kind.pause
            kind.pause = min(2 * kind.pause, _LONGEST_PAUSE)
        else:
            kind.pull_again = math.inf
            self._report("Fetched", pulled)

    def _merge(self, kind: _Kind, theirs: memoryview, ours: memoryview) -> memoryview:
        for reference in self._caches.valuerefs():
            cache = reference()
            if cache is None:
                continue
            # Its engines are on another kind of device, or none has run so far.
            with suppress(RuntimeError), relaxed_stream_capture():
                tensors = tensor_of(theirs), tensor_of(ours)
                return memory_of(cache._handle.merged(*tensors, kind.name))
        return kind.merger(theirs, ours)

    def _transfers(self, deadline: float | None = None) -> Transfers:
        if deadline is None:
            deadline = time.monotonic() + _LONGEST_TRANSFER
        return Transfers(self._store, self.directory, deadline)

    def _report(self, what: str, transfer: Transfer) -> None:
        self._has_warned = False
        if transfer.outcome is Outcome.TRANSFERRED:
            _LOGGER.info(
                "%s %d bytes: '%s%s'",
                what,
                transfer.size,
                self.url.url,
                transfer.name,
            )


class _Kind:
    """A kind of this machine, and when its file and its object are transferred next."""

    def __init__(self, kind: RuntimeCacheKind) -> None:
        self.kind = kind
        self.name = kind.file_name()
        self.merger = Merger(kind)
        self.schedule = UploadSchedule()
        self.pull_again = -math.inf  # by time.monotonic()
        self.pause = _FIRST_PAUSE


_tiers: dict[CacheURL, RemoteTier] = {}  # of this process


def remote_tier_of(url: CacheURL) -> RemoteTier:
    """This process's tier for a URL.

    Raises:
        ImportError: The library for object stores is missing.
        RuntimeError: There is no place for the local tier.
    """
    tier = _tiers.get(url)
    # Of two that threads make at once, the first one stays.
    return tier or _tiers.setdefault(url, RemoteTier(url))


def push_all_within(seconds: float) -> None:
    """Uploads what the stores of this process lack. An error is a warning."""
    deadline = time.monotonic() + seconds
    for tier in tuple(_tiers.values()):
        tier.push_within(max(0.0, deadline - time.monotonic()))


def end_all(deadline: float) -> None:
    """Likewise at the end of the process, by time.monotonic()."""
    for tier in tuple(_tiers.values()):
        tier.end(deadline)


def _text_of(error: Exception) -> str:
    return str(error) if isinstance(error, RuntimeError) else repr(error)


def _wake() -> None:
    pass
