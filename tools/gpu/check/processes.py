"""Runs a program to its end, or to a time limit with all that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import IO

from tools.gpu.check.prerequisites import ROOT


def run(
    command: list[str],
    output: IO[bytes],
    timeout: float,
    environment: dict[str, str] | None = None,
) -> int | None:
    """Its exit status, None if it was killed after `timeout` seconds.

    It runs in the repository's root; `output`, a file, gets what it prints.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(timeout)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return None
        raise
