"""Processes that run engines for a question, and the rows of their results."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TypeVar

from tools.gpu.questions import engines
from tools.gpu.questions.devices import GpuDevice
from tools.gpu.report import Row, Status

Result = TypeVar("Result")

CACHE = "runtime cache"  # the step of most questions


class WorkerDied(Exception):
    """The process crashed or hung."""


@dataclass(frozen=True)
class Worker:
    """A process with a device that calls functions of modules.

    Attributes:
        log: Gets what the process prints, C++ libraries included.
    """

    log: Path
    _pool: ProcessPoolExecutor

    def __call__(
        self,
        function: Callable[..., Result],
        *arguments: object,
        timeout: float = 120,
    ) -> Result:
        """Returns what the function returns there. Raises what it raises.

        Args:
            timeout: In seconds, after which the process is ended.

        Raises:
            WorkerDied: The process ended.
        """
        try:
            called = self._pool.submit(engines.call, timeout, function, *arguments)
            return called.result()
        except BrokenProcessPool:
            output = self.output()  # has what faulthandler says
            if re.search(r"^Timeout \(", output, re.MULTILINE):
                raise WorkerDied(f"HANG: no result within {timeout:g} s") from None
            crashes = re.findall(r"^Fatal Python error: (.*)", output, re.MULTILINE)
            raise WorkerDied(f"CRASH: {''.join(crashes) or 'it ended'}") from None

    def output(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass
class Laboratory:
    """Where questions are asked.

    Attributes:
        folder: For files; empty, since an earlier cache would make a cold start warm.
        own_cache: Gets a cache of this machine, for `foreign_caches` of others.
        foreign_caches: Caches of other machines or versions.
    """

    device: GpuDevice
    folder: Path
    own_cache: Path
    foreign_caches: Sequence[Path] = ()
    _numbers: count[int] = field(default_factory=count)

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """Starts a process that ends with the block."""
        log = self.new_path()
        log.touch()
        context = multiprocessing.get_context(self.device.start_method)
        context.set_forkserver_preload([engines.__name__])
        with ProcessPoolExecutor(
            1, context, initializer=engines.begin, initargs=(self.device, log)
        ) as pool:
            try:
                pool.submit(int)  # starts it
                yield Worker(log, pool)
            finally:
                # At once, since it might hang while it exits.
                with suppress(BrokenProcessPool):
                    pool.submit(os._exit, 0)

    def raw_run(self, name: str, blobs: Sequence[bytes] = ()) -> engines.RawRun:
        """engines.raw_run in a new process, since an old one might keep compiled kernels."""
        with self.worker() as worker:
            return worker(engines.raw_run, name, blobs)

    def new_path(self) -> Path:
        """Returns the path of a file that does not exist."""
        return self.folder / str(next(self._numbers))


def answered(question: str, answer: str, as_designed: bool, figure: str = "") -> Row:
    """Returns the row of a question about caches."""
    status = Status.ANSWER if as_designed else Status.CONTRADICTION
    return Row(CACHE, question, status, answer, figure)
