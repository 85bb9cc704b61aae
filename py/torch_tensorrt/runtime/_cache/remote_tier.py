"""Keeps caches of this process in step with an object store."""

from __future__ import annotations

import logging
import math
import multiprocessing
import multiprocessing.util
import os
import queue
import shutil
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import Protocol

import tensorrt_rtx as trt
import torch

from torch_tensorrt._errors import message_of
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

_LONGEST_TRANSFER = 600.0  # seconds
_FIRST_PAUSE = 10.0  # seconds, after a failed fetch
_LONGEST_PAUSE = 600.0  # seconds


class _Handle(Protocol):
    """A handle of either runtime, which can merge in its scratch cache."""

    def merged(
        self, theirs: torch.Tensor, ours: torch.Tensor, file_name: str, /
    ) -> torch.Tensor: ...


class _Cache(Protocol):
    @property
    def _handle(self) -> _Handle: ...


class RemoteTier:
    """Keeps a directory of this machine in step with the objects under a URL.

    The directory is the local tier: the caches of this and of other processes load from it and save
    to it. A thread first fetches what an engine can start with. Later it uploads what was saved:
    once nothing has been saved for a while, at the latest a minute after the first save, and at the
    end of the process.

    If the store fails, the exchange of kernels is delayed. None are lost unless the directory is a
    temporary one, which goes with the process. The first failure is logged as a warning, and so is
    the first one after all transfers succeeded again.

    Thread safety: any method may be called from any thread, and `begin_push` also from signal
    handlers.

    Attributes:
        url: The store.
        directory: The local tier, with a separator at its end.
    """

    def __init__(self, url: CacheURL) -> None:
        check_library()
        self.url = url
        self._temporary: str | None = None
        self._process = os.getpid()
        try:
            self.directory = local_tier_of(url.url)
        except RuntimeError as error:
            try:
                self._temporary = tempfile.mkdtemp(prefix="torch_tensorrt-")
            except OSError:
                raise error from None
            self.directory = f"{self._temporary}{os.sep}"
            _LOGGER.warning(
                "%s. Until this process ends, its place is '%s'",
                error,
                self.directory,
            )
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
        # For the fetch at the start.
        self._has_first_byte = threading.Event()
        self._is_fetched = threading.Event()
        self._kinds: list[_Kind] = []
        self._is_pulling = False
        self._is_interrupted = False  # a pull gave way to an upload
        self._has_ended = False
        self._has_warned = False  # since all transfers last succeeded
        self._log: deque[tuple[int, str]] = deque()  # messages of the thread

    def start_over_in_child(self) -> None:
        """Called in a child of fork(): see forks.py."""
        self._store.abandon()
        self._start_over()

    def add(self, cache: _Cache) -> None:
        """Adds a cache of this process on the tier. It can merge once an engine uses it."""
        self._caches[id(cache)] = cache

    def begin(self) -> None:
        """The first call starts the thread, which fetches what an engine can start with."""
        with deferred_calls(), self._starting_lock:
            if self._thread is not None or exit_deadline() < math.inf:
                return
            thread = threading.Thread(
                target=self._serve, name="torch_tensorrt remote tier", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                self._report_failure(str(error))
            else:
                self._thread, self._start = thread, time.monotonic()
                if multiprocessing.parent_process() is not None:
                    # Before CPython 3.13, a forked worker ends without calling atexit's functions.
                    # Its caches are saved at priority 0, which comes before this.
                    multiprocessing.util.Finalize(None, _end, exitpriority=-1)
        self._flush_log()

    def wait_until_fetched(self) -> None:
        """Waits for the fetch, at most as long as the start of an engine may wait."""
        self.begin()
        if self._thread is None:
            return
        for event, timeout, what in (
            (self._has_first_byte, self.url.first_byte_timeout, "no answer"),
            (self._is_fetched, self.url.start_timeout, "not everything arrived"),
        ):
            if not event.wait(max(0.0, self._start + timeout - time.monotonic())):
                self._report_failure(f"{what} within {timeout:g} s")
                break
        self._flush_log()

    def begin_push(self, deadline: float) -> Future[None]:
        """Begins to upload what the store lacks. `deadline` is by time.monotonic()."""
        done: Future[None] = Future()
        is_due = any(map(self._is_to_push, self._kinds))
        is_served = self._thread is not None and self._thread.is_alive()
        if not is_due or not is_served or threading.current_thread() is self._thread:
            done.set_result(None)
            return done
        self._messages.put(partial(self._push_all, deadline, done))
        if self._is_pulling:  # the store may hang
            self._is_interrupted = True
            # Otherwise the handler of another signal could wait for this one.
            with deferred_calls():
                self._store.close()
        return done

    def wait_for_push(self, done: Future[None], deadline: float) -> None:
        """Waits for the upload that `begin_push` began."""
        start = time.monotonic()
        if not wait([done], max(0.0, deadline - start)).done:
            milliseconds = round((time.monotonic() - start) * 1000)
            self._report_failure(f"the upload is not done within {milliseconds} ms")
            self._flush_log()

    def end(self) -> None:
        """Ends the thread for good, without waiting for a transfer."""
        if not self._has_ended:
            self._has_ended = True
            self._messages.put(_wake)
            self._store.close()
            if self._temporary is not None and self._process == os.getpid():
                shutil.rmtree(self._temporary, ignore_errors=True)

    def _is_to_push(self, kind: _Kind) -> bool:
        if self.url.is_read_only or self._has_ended:
            return False
        file = generation_at(file_in(self.directory, kind.kind))
        return file is not None and not self._transfers().is_uploaded(kind.name)

    def _report_failure(self, reason: str) -> None:
        level = logging.INFO if self._has_warned or self._has_ended else logging.WARNING
        self._has_warned = True
        kept = (
            f"Nothing is lost: this machine's kernels are in '{self.directory}'"
            if self._temporary is None
            else f"This machine's kernels are in '{self.directory}' until the process ends"
        )
        place = f"The runtime cache '{self.url.url}'"
        text = f"{place} is not in step with this machine: {reason}. {kept}"
        self._log.append((level, text))

    def _flush_log(self) -> None:
        """Writes the log when nobody waits for this thread.

        A log handler may wait for a thread that waits for this one.
        """
        with suppress(IndexError):
            while True:
                level, text = self._log.popleft()
                with suppress(Exception):  # exceptions of the user's log handlers
                    _LOGGER.log(level, "%s", text)

    # The methods below run on the thread.

    def _serve(self) -> None:
        try:
            self._kinds = [_Kind(kind) for kind in kinds_of_machine(trt.__version__)]
            if not self._kinds:
                self._report_failure("the kind of this machine's GPU is unknown")
            self._pull_all()
        finally:
            self._has_first_byte.set()
            self._is_fetched.set()
            self._flush_log()
        while not self._has_ended:
            try:
                message = self._messages.get(timeout=self._pause())
            except queue.Empty:
                self._look()
            else:
                message()
            self._flush_log()

    def _pause(self) -> float | None:
        now = time.monotonic()
        times = [kind.pull_again for kind in self._kinds]
        if not self.url.is_read_only:
            times += [kind.schedule.wake(now) for kind in self._kinds]
        first = min(times, default=math.inf)
        return None if first == math.inf else max(0.0, first - now)

    def _look(self) -> None:
        """Does the transfers that are due."""
        self._pull_all()
        if self.url.is_read_only:
            return
        now = time.monotonic()
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
            self._push_due(deadline)
            if self._is_interrupted:  # begin_push ended this upload in place of a pull
                self._is_interrupted = False
                self._push_due(deadline)
        finally:
            done.set_result(None)

    def _push_due(self, deadline: float) -> None:
        for kind in filter(self._is_to_push, self._kinds):
            self._push(kind, deadline)

    def _push(self, kind: _Kind, deadline: float) -> None:
        merge = partial(self._merge, kind)
        try:
            pushed = self._transfers(deadline).push(kind.name, merge)
        except CannotMergeError as error:
            self._fail(kind, f"nothing is uploaded, because {error}")
            kind.schedule.done(time.monotonic())
        except Exception as error:
            if not self._is_interrupted:
                self._fail(kind, _text_of(error))
            kind.schedule.failed(time.monotonic())
        else:
            kind.schedule.done(time.monotonic())
            self._succeed(kind, "Uploaded", pushed)

    def _pull_all(self) -> None:
        """Pulls the kinds that are due."""
        now = time.monotonic()
        self._is_pulling = True
        for kind in self._kinds:
            if kind.pull_again <= now and not self._is_interrupted:
                self._pull(kind)
        self._is_pulling = self._is_interrupted = False

    def _pull(self, kind: _Kind) -> None:
        merge = partial(self._merge, kind)
        announce = self._has_first_byte.set
        try:
            pulled = self._transfers().pull_kind(kind.kind, merge, announce)
        except CannotMergeError as error:
            self._fail(kind, f"nothing is fetched, because {error}")
            kind.pull_again = math.inf
        except Exception as error:
            if not self._is_interrupted:
                self._fail(kind, _text_of(error))
            kind.pull_again = time.monotonic() + kind.pause
            kind.pause = min(2 * kind.pause, _LONGEST_PAUSE)
        else:
            kind.pull_again = math.inf
            self._succeed(kind, "Fetched", pulled)

    def _merge(self, kind: _Kind, theirs: memoryview, ours: memoryview) -> memoryview:
        for reference in self._caches.valuerefs():
            cache = reference()
            if cache is None:
                continue
            try:
                with relaxed_stream_capture():
                    tensors = tensor_of(theirs), tensor_of(ours)
                    return memory_of(cache._handle.merged(*tensors, kind.name))
            except RuntimeError as error:
                # Otherwise its engines are on another kind of device, or none has run so far.
                if "Can't merge" in str(error):
                    raise CannotMergeError(message_of(error)) from error
        return kind.merger(theirs, ours)

    def _transfers(self, deadline: float | None = None) -> Transfers:
        if deadline is None:
            deadline = time.monotonic() + _LONGEST_TRANSFER
        return Transfers(self._store, self.directory, deadline)

    def _fail(self, kind: _Kind, reason: str) -> None:
        kind.is_well = False
        self._report_failure(reason)

    def _succeed(self, kind: _Kind, what: str, transfer: Transfer) -> None:
        kind.is_well = True
        if all(kind.is_well for kind in self._kinds):
            self._has_warned = False
        if transfer.outcome is Outcome.TRANSFERRED:
            name = f"{self.url.url}{transfer.name}"
            self._log.append((logging.INFO, f"{what} {transfer.size} bytes: '{name}'"))


class _Kind:
    """A kind of this machine, and the schedule of its transfers."""

    def __init__(self, kind: RuntimeCacheKind) -> None:
        self.kind = kind
        self.name = kind.file_name()
        self.merger = Merger(kind)
        self.schedule = UploadSchedule()
        self.pull_again = -math.inf  # by time.monotonic()
        self.pause = _FIRST_PAUSE
        self.is_well = True  # the last transfer did not fail


_tiers: dict[CacheURL, RemoteTier] = {}


def remote_tier_of(url: CacheURL) -> RemoteTier:
    """Returns this process's tier for a URL.

    Raises:
        ImportError: The library for object stores is missing.
        RuntimeError: There is no place for the local tier.
    """
    tier = _tiers.get(url)
    # If two threads make one at the same time, the first one is kept.
    return tier or _tiers.setdefault(url, RemoteTier(url))


def push_all(deadline: float) -> None:
    """Uploads what the stores of this process lack. Raises nothing.

    `deadline` is by time.monotonic().
    """
    pushes = [(tier, tier.begin_push(deadline)) for tier in tuple(_tiers.values())]
    for tier, push in pushes:
        tier.wait_for_push(push, deadline)


def end_all(deadline: float) -> None:
    """Like `push_all`, and ends all tiers. For the end of the process."""
    push_all(deadline)
    for tier in tuple(_tiers.values()):
        tier.end()


def _end() -> None:
    end_all(begin_exit())


def _text_of(error: Exception) -> str:
    return message_of(error) if isinstance(error, RuntimeError) else repr(error)


def _wake() -> None:
    pass
