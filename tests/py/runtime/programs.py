"""Programs whose end is tested: interpreters that start quickly.

A server has imported torch and this project. Each program is a child of the server. It runs code in
`__main__` and then ends as any interpreter does: it joins threads, runs atexit's functions and
tears down modules.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.py.runtime.runtime_testing import DEADLINE

_SERVER = """
from tests.py.runtime.programs import serve
code = serve(int(sys.argv[1]))
exec(code)
"""

# The code with which every program begins.
_BEGIN = """
import gc, logging, os, signal, sys, threading, time, warnings
from tests.py.runtime.runtime_testing import *
# CPython 3.12 and later warn of forks in processes with threads.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
device = use_device()
def say(*words):
    print(*words, flush=True)
"""


class Programs:
    """Starts programs, and kills them when it is closed."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="programs-")
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            code = (
                f"import sys\nfrom tests.py.runtime.runtime_testing import *\n{_SERVER}"
            )
            self._server = subprocess.Popen(
                [sys.executable, "-c", code, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        self._programs: list[Program] = []

    def close(self) -> None:
        for program in self._programs:
            program.close()
        self._socket.close()
        self._server.wait(DEADLINE)
        self._folder.cleanup()

    def start(self, code: str, **names: Any) -> Program:
        """Starts a program that runs the code.

        Its globals are `names`, those of runtime_testing, `say()`, and `device`, its simulated
        device.
        """
        base = Path(self._folder.name) / str(len(self._programs))
        stdin, stdin_end = os.pipe()
        files = [stdin]
        for suffix in (".out", ".err"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            files.append(os.open(base.with_suffix(suffix), flags, 0o600))
        message = pickle.dumps((_BEGIN + code, names))
        socket.send_fds(self._socket, [message], files)
        for file in files:
            os.close(file)
        program = Program(self, self._answer(), base, stdin_end)
        self._programs.append(program)
        return program

    def run(self, code: str, **names: Any) -> Program:
        """Runs a program and returns when it has ended."""
        program = self.start(code, **names)
        program.wait()
        return program

    def poll(self, pid: int) -> int | None:
        self._socket.send(pickle.dumps(pid))
        status = self._answer()
        return None if status is None else os.waitstatus_to_exitcode(status)

    def _answer(self) -> Any:
        answer = self._socket.recv(1 << 16)
        assert answer, "the server has ended"
        return pickle.loads(answer)


class Program:
    def __init__(self, programs: Programs, pid: int, base: Path, stdin: int) -> None:
        self.pid = pid
        self._programs = programs
        self._base = base
        self._stdin = stdin
        self._heard = 0
        self._status: int | None = None

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def stdout(self) -> str:
        return self._base.with_suffix(".out").read_text()

    @property
    def stderr(self) -> str:
        return self._base.with_suffix(".err").read_text()

    @property
    def outcome(self) -> tuple[int, str, str]:
        """Waits for the end. Returns the exit status (negative for a signal), stdout and stderr."""
        return self.wait(), self.stdout, self.stderr

    def tell(self, line: str = "") -> None:
        os.write(self._stdin, f"{line}\n".encode())

    def hear(self) -> str:
        """Returns the next line that the program prints."""
        deadline = time.monotonic() + DEADLINE
        while True:
            has_ended = self.poll() is not None
            lines = self.stdout.splitlines(keepends=True)[self._heard :]
            if lines and lines[0].endswith("\n"):
                self._heard += 1
                return lines[0].rstrip("\n")
            assert not has_ended, f"ended with {self._status}: {self.stderr}"
            assert time.monotonic() < deadline, f"silent: {self.stderr}"
            time.sleep(0.005)

    def poll(self) -> int | None:
        if self._status is None:
            self._status = self._programs.poll(self.pid)
        return self._status

    def wait(self) -> int:
        deadline = time.monotonic() + DEADLINE
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                self.close()
                raise AssertionError(f"does not end: {self.stdout}{self.stderr}")
            time.sleep(0.005)
        return status

    def send(self, signalnum: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, signalnum)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def close(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1


def serve(control: int) -> str:
    """Serves requests until the server ends. In each program, returns its code."""
    channel = socket.socket(fileno=control)
    while True:
        message, files, *_ = socket.recv_fds(channel, 1 << 18, 3)
        if not message:
            os._exit(0)
        order = pickle.loads(message)
        if isinstance(order, int):
            pid, status = os.waitpid(order, os.WNOHANG)
            channel.send(pickle.dumps(status if pid else None))
            continue
        code, names = order
        pid = os.fork()
        if pid == 0:
            channel.close()
            for target, file in enumerate(files):
                os.dup2(file, target)
                os.close(file)
            sys.argv[1:] = []
            vars(sys.modules["__main__"]).update(names)
            assert isinstance(code, str)
            return code
        for file in files:
            os.close(file)
        channel.send(pickle.dumps(pid))
