"""Directories of caches for the tests of the command."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import tensorrt_rtx as trt

DAY = 24 * 3600  # seconds


def kind_file(driver: str, gpu: str = "nvidia-l4") -> str:
    return f"{gpu}-sm89-rtx{trt.__version__}-linux-driver{driver}.bin"


def set_age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then), follow_symlinks=False)


def put(path: Path, days: float, size: int = 1000, has_lock: bool = True) -> Path:
    """Writes a cache that was last used that many days ago."""
    path.write_bytes(bytes(size))
    set_age(path, days)
    if has_lock:
        lock = Path(f"{path}.lock")
        lock.touch()
        set_age(lock, days)
    return path


Snapshot = dict[str, tuple[object, ...]]


def snapshot(directory: Path) -> Snapshot:
    """The state of everything in a directory, without access times."""
    return {path.name: _state(path) for path in directory.iterdir()}


def _state(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    state = (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns)
    if stat.S_ISLNK(status.st_mode):
        return *state, path.readlink()
    if stat.S_ISREG(status.st_mode):
        return *state, path.read_bytes()
    return state
