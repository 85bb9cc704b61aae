"""Processes that read commands and print replies, one per line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


class LineProcess:
    """A process that a test talks to, killed when the block ends."""

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
        """Sends SIGKILL, so that nothing in the process releases a lock. Idempotent."""
        self.process.kill()
        self.process.communicate()


def file_lock_tool(mode: str, path: Path) -> LineProcess:
    """A process with a C++ FileLock on the path. The mode is "shared" or "exclusive".

    It runs the program named by FILE_LOCK_TOOL. Its commands are listed in file_lock_tool.cpp.
    """
    return LineProcess(os.environ["FILE_LOCK_TOOL"], mode, path)


def lock_peer(kind: str, path: Path) -> LineProcess:
    """A process with a lock on the path that takes the commands of file_lock_tool.cpp.

    The kind is "cpp-exclusive", "cpp-shared", "filelock-4" (this interpreter's version) or
    "filelock-3" (the version in the directory FILELOCK_3, which unlinks the lock file at every
    release).
    """
    implementation, variant = kind.split("-")
    if implementation == "cpp":
        return file_lock_tool(variant, path)
    environment = dict(os.environ)
    if variant == "3":
        paths = [os.environ["FILELOCK_3"], os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    script = Path(__file__).with_name("filelock_peer.py")
    peer = LineProcess(sys.executable, script, path, env=environment)
    version = peer.hear()
    assert version.startswith(f"{variant}."), f"{kind} runs {version}"
    return peer
