"""Processes that are told and answer lines."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path


class LineProcess:
    """A process that a test talks to. It is killed when the block ends."""

    def __init__(
        self, *command: str | Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.command = [str(word) for word in command]
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> LineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.hear()

    def kill(self) -> None:
        """SIGKILL, so that nothing in the process releases a lock; idempotent."""
        self.process.kill()
        self.process.communicate()


def environment_with_old_filelock() -> dict[str, str]:
    """This process's, but `import filelock` gives what FILELOCK_3 has."""
    paths = [os.environ["FILELOCK_3"], os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def file_lock_tool(mode: str, path: Path) -> LineProcess:
    """A process with a C++ FileLock on the path, "shared" or "exclusive".

    It runs the program FILE_LOCK_TOOL: see file_lock_tool.cpp for its commands.
    """
    return LineProcess(os.environ["FILE_LOCK_TOOL"], mode, path)
