"""The background thread that saves caches. The twin of core/runtime/CheckpointThread.h."""

from __future__ import annotations

import math
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from torch_tensorrt.runtime._cache.checkpoint_schedule import CheckpointSchedule, Found
from torch_tensorrt.runtime._cache.exit_deadline import exit_deadline
from torch_tensorrt.runtime._cache.forks import start_over_in_children
from torch_tensorrt.runtime._cache.stream_capture import relaxed_stream_capture
from torchtrt_cache.file_lock import LockWaits, deferred_calls
from torchtrt_cache.unlocked_logger import unlocked_logger

_LOGGER = unlocked_logger("checkpoint_thread")

_PAUSE_PER_WORK = 100
_LOG_PATIENCE = 0.1  # seconds

_Result = TypeVar("_Result")


class Cache(Protocol):
    """A cache that has checkpoints."""

    def checkpoint(self, waits: LockWaits) -> Found:
        """Saves new kernels. Raises nothing. Does not wait for locks once `waits.stop` is set."""


class _Jobs(deque[tuple[Callable[[], Any], "Future[Any]"]]):
    """The work that waits to be run."""

    def is_set(self) -> bool:
        """Whether a checkpoint must stop waiting for locks, as `LockWaits.stop` needs it."""
        return len(self) > 0


class CheckpointThread:
    """The background thread that saves all runtime caches of this process while the process runs.

    It starts when the first engine marks a cache that saves itself. A child of fork() has another
    one, without caches, which starts in the same way.

    Checkpoints take at most 1 % of a core: after each round of checkpoints, the thread pauses for
    at least 100 times as long as the round took. It is in CUDA's relaxed stream-capture mode, so
    that its calls never invalidate a graph that another thread captures.

    Thread safety: any method may be called from any thread, also from finalizers and signal
    handlers, but `stop` not from this thread. Messages reach the thread only through queues, which
    are reentrant. Nobody waits for the thread while it logs, because a signal handler that waits
    may have interrupted logging.
    """

    def __init__(self) -> None:
        self._start_over()
        start_over_in_children(self)

    def _start_over(self) -> None:
        self._starting_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._has_ended = False
        self._has_warned = False
        self._is_logging = False
        self._jobs = _Jobs()
        self._messages: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        # Used only by the thread.
        self._schedules: dict[weakref.ref[Cache], CheckpointSchedule] = {}
        self._not_before = 0.0

    def start_over_in_child(self) -> None:
        self._start_over()

    def begin(self, cache: Cache, specializes_lazily: bool) -> None:
        """Must be called when a call that may compile kernels into the cache begins.

        See `CheckpointSchedule`.
        """
        if self.start():
            now, reference = time.monotonic(), weakref.ref(cache)
            self._messages.put(partial(self._begin, reference, now, specializes_lazily))

    def end(self, cache: Cache) -> None:
        """Must be called when the call ends for which `begin` was called."""
        if self._thread is not None:
            self._messages.put(partial(self._end, weakref.ref(cache), time.monotonic()))

    def run(self, work: Callable[[], _Result], deadline: float) -> _Result:
        """Runs `work` on the thread and returns its result.

        A running checkpoint stops waiting for locks. If the thread can't be started, `work` runs on
        the calling thread.

        Args:
            work: The function to call. It may still be running after a TimeoutError.
            deadline: By time.monotonic().

        Raises:
            TimeoutError: `work` has not ended by the deadline.
            Whatever `work` raises.
        """
        # The garbage collector may end a cache on the thread itself.
        if threading.current_thread() is self._thread or not self.start():
            return work()
        future: Future[_Result] = Future()
        self._jobs.append((work, future))
        self._messages.put(_wake)
        try:
            while (left := deadline - time.monotonic()) > 0:
                if wait([future], min(left, _LOG_PATIENCE)).done:
                    return future.result()
                thread = self._thread
                has_ended = thread is None or not thread.is_alive()
                if (self._is_logging or has_ended) and future.cancel():
                    return work()
            future.cancel()
            raise TimeoutError
        finally:
            del future  # otherwise it and an error's traceback would keep each other alive

    def start(self) -> bool:
        """Starts the thread if it is not running. Returns True if it runs.

        The first failure is logged as a warning.
        """
        failure = None
        if self._thread is None:
            with deferred_calls(), self._starting_lock:
                if self._thread is None and not self._has_ended:
                    thread = threading.Thread(
                        target=self._serve,
                        name="torch_tensorrt checkpoints",
                        daemon=True,
                    )
                    try:
                        thread.start()
                        self._thread = thread
                    except RuntimeError as error:
                        # From CPython 3.12 on there are no new threads at the end of a process.
                        if not self._has_warned and exit_deadline() == math.inf:
                            self._has_warned = True
                            failure = str(error)
        if failure is not None:
            _LOGGER.warning(
                "Runtime caches are not saved while the process runs, because no thread can be "
                "started: %s",
                failure,
            )
        return self._thread is not None and not self._has_ended

    def stop(self, deadline: float) -> None:
        """Ends the thread for good, and waits for its end until the deadline."""
        if self._thread is not None:
            with suppress(TimeoutError):
                self.run(self._stop, deadline)
            self._thread.join(max(0.0, deadline - time.monotonic()))
        self._stop()

    def _stop(self) -> None:
        self._has_ended = True

    # The methods below run on the thread.

    def _serve(self) -> None:
        while not self._has_ended:
            try:
                message = self._messages.get(timeout=self._pause())
            except queue.Empty:
                message = self._checkpoint_all
            with relaxed_stream_capture():
                message()
                while self._jobs:
                    self._run_job()

    def _pause(self) -> float | None:
        dues = [s.due() for s in self._schedules.values()]
        first = min((due for due in dues if due is not None), default=None)
        if first is None:
            return None
        return max(0.0, max(first, self._not_before) - time.monotonic())

    def _begin(
        self, reference: weakref.ref[Cache], now: float, specializes_lazily: bool
    ) -> None:
        cache = reference()
        if cache is not None:
            self._schedules = {
                r: s for r, s in self._schedules.items() if r() is not None
            }
            schedule = self._schedules.setdefault(reference, CheckpointSchedule())
            schedule.begin(now, specializes_lazily)

    def _end(self, reference: weakref.ref[Cache], now: float) -> None:
        cache = reference()
        if cache is not None and reference in self._schedules:
            self._schedules[reference].end(now)

    def _run_job(self) -> None:
        work, future = self._jobs.popleft()
        if not future.set_running_or_notify_cancel():
            return
        with self._logging_afterwards():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
                del future  # otherwise it and the traceback would keep each other alive

    @contextmanager
    def _logging_afterwards(self) -> Iterator[None]:
        with suppress(Exception), deferred_calls():  # exceptions of log handlers
            yield
            self._is_logging = True
        self._is_logging = False

    def _checkpoint_all(self) -> None:
        """Saves every cache that is due."""
        now = time.monotonic()
        work = 0.0
        for reference, schedule in self._schedules.items():
            due = schedule.due()
            if due is None or due > now:
                continue
            if self._jobs:
                break
            schedule.start()
            if (cache := reference()) is not None:
                waits = LockWaits(stop=self._jobs)
                start = time.monotonic()
                with self._logging_afterwards():
                    found = cache.checkpoint(waits)
                    end = time.monotonic()
                schedule.done(end, found)
                work += end - start - waits.waited
        self._not_before = time.monotonic() + _PAUSE_PER_WORK * work


checkpoint_thread = CheckpointThread()
"""The thread of this process."""


def _wake() -> None:
    pass
