"""Processes that call functions for this one, and whose end, a crash too, is a result."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

Result = TypeVar("Result")

_PRELOADED = ["tools.gpu.questions.engines", "tests.util.simulation.simulated_device"]


class WorkerError(Exception):
    """The function raised; the text is its exception's, `details` the traceback."""

    def __init__(self, text: str, details: str) -> None:
        super().__init__(text)
        self.details = details


class WorkerDied(Exception):
    """The process ended, or had to be ended, before it answered; the text says how."""


class WorkerHung(WorkerDied):
    """It was ended because it did not answer in time."""


class Worker:
    """A process that calls module-level functions for this one, one at a time.

    What it writes to stdout and stderr goes to the file `log`. One object in one thread at a time.

    Args:
        log: The file, which is appended to.
        is_fresh: Whether it is a fresh interpreter, which takes seconds to import torch. Otherwise
            it is a fork of one that has imported it, and runs nothing that `atexit` registered.
        begin: Called first, with `arguments`; the first call waits for it.
    """

    def __init__(
        self,
        log: Path,
        is_fresh: bool,
        begin: Callable[..., object],
        *arguments: object,
    ) -> None:
        self._log = log
        context: SpawnContext | ForkServerContext
        if is_fresh:
            context = multiprocessing.get_context("spawn")
        else:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(_PRELOADED)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, str(log)), daemon=True
        )
        self._process.start()
        theirs.close()
        self._is_ready = False
        self._connection.send((begin, arguments))

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def wait_until_ready(self, timeout: float = 120) -> None:
        """Until `begin` has returned; `timeout` in seconds. Raises as a call does."""
        if not self._is_ready:
            self._is_ready = True
            self._answer(timeout)

    def __call__(
        self,
        function: Callable[..., Result],
        *arguments: object,
        timeout: float = 120,
    ) -> Result:
        """What `function` returns there.

        Args:
            function: Of a module that can be imported there too.
            arguments: They and the result travel pickled.
            timeout: In seconds, after which the process is killed.

        Raises:
            WorkerError: The function raised.
            WorkerDied: The process ended.
            WorkerHung: It did not answer in time.
        """
        self.wait_until_ready(timeout)
        try:
            self._connection.send((function, arguments))
        except OSError as error:
            raise self._died() from error
        result: Result = self._answer(timeout)
        return result

    def output(self) -> str:
        """What it wrote to stdout and stderr so far, C++ libraries included."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def close(self) -> int | None:
        """Lets it end on its own, as an interpreter exits, and answers its exit status."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(60)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()
        return self._process.exitcode

    def _answer(self, timeout: float) -> Any:
        try:
            if not self._connection.poll(timeout):
                self._process.kill()
                self._process.join()
                raise WorkerHung(f"no answer within {timeout:g} s")
            is_result, value = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._died() from error
        if is_result:
            return value
        raise WorkerError(*value)

    def _died(self) -> WorkerDied:
        self._process.join(10)
        status = self._process.exitcode
        if status is not None and status < 0:
            return WorkerDied(f"killed by {signal.Signals(-status).name}")
        return WorkerDied(f"ended with exit status {status}")


def _serve(connection: Connection, log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)  # where TensorRT-RTX's Python package logs
    os.dup2(file, 2)
    os.close(file)
    # EOF: the parent is gone.
    with contextlib.suppress(EOFError):
        while (task := connection.recv()) is not None:
            function, arguments = task
            try:
                answer = (True, function(*arguments))
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                answer = (False, (text, traceback.format_exc()))
            connection.send(answer)
