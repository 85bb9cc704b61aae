"""Processes of four kinds of machine and both runtimes on one directory, killed at random times."""

from __future__ import annotations

import itertools
import random
import signal
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.py.runtime.live_handles import compile_into, kernels_on_disk, live
from tests.py.runtime.runtime_cache_testing import RUNTIMES, handle_of
from tests.py.runtime.runtime_testing import (
    DEADLINE,
    fork_server,
    use_device,
    uses_gpu,
    wait_until,
)
from tests.util.simulation.simulated_device import KIND, installed_device

ROUNDS = 10
KILLED_EACH_ROUND = 5
ROUND = 1.0  # seconds

# The keys are the names of the kinds' files.
KINDS: dict[str, dict[str, Any]] = {
    f"nvidia-l4-sm89-rtx{KIND.tensorrt_rtx}-linux-driver13.0.bin": {"gpu": "NVIDIA L4"},
    "nvidia-l4-sm89-rtx99.0.0.0-linux-driver13.0.bin": {
        "gpu": "NVIDIA L4",
        "tensorrt_rtx_version": "99.0.0.0",
    },
    f"nvidia-l4-sm89-rtx{KIND.tensorrt_rtx}-linux-driver12.8.bin": {
        "gpu": "NVIDIA L4",
        "cuda_driver": 12080,
    },
    f"nvidia-rtx-a6000-sm89-rtx{KIND.tensorrt_rtx}-linux-driver13.0.bin": {
        "gpu": "NVIDIA RTX A6000"
    },
}


def save_until_killed(
    runtime: str, directory: Path, kind: str, name: str, finished: Connection
) -> None:
    """Saves one more kernel again and again, and sends the number of saved kernels."""
    device = use_device()
    device.set_environment(**KINDS[kind])
    device.set_compile_time(0.01)
    handle = handle_of(runtime, directory)
    for kernels in itertools.count(1):
        compile_into(runtime, handle, f"{name}-{kernels}.")
        try:
            handle.save()
        except RuntimeError as error:
            # A process that saves without a pause may be faster than all those that merge.
            if "others saved to it" not in str(error):
                raise
        else:
            finished.send_bytes(kernels.to_bytes(8, "little"))


@dataclass
class Saver:
    """A sequence of processes, one at a time."""

    runtime: str
    directory: Path
    kind: str
    name: str
    saved: list[str] = field(default_factory=list)  # kernels
    starts: int = 0

    def start(self) -> None:
        self._finished, theirs = fork_server.Pipe(duplex=False)
        self._life = f"{self.name}-{self.starts}"
        self.starts += 1
        self._process = fork_server.Process(
            target=save_until_killed,
            args=(self.runtime, self.directory, self.kind, self._life, theirs),
        )
        self._process.start()
        theirs.close()

    def has_saved(self) -> bool:
        return self._finished.poll()

    def kill(self) -> None:
        self._process.kill()
        self._process.join(DEADLINE)
        assert self._process.exitcode == -signal.SIGKILL
        number = 0
        with self._finished:
            try:
                while True:
                    number = int.from_bytes(self._finished.recv_bytes(), "little")
            except EOFError:
                pass
        self.saved += [f"{self._life}-{kernels + 1}." for kernels in range(number)]


@pytest.mark.skipif(uses_gpu(), reason="simulates kinds of machine")
def test_killed_processes_of_four_kinds_lose_no_kernel_of_any(tmp_path: Path) -> None:
    savers = [
        Saver(runtime, tmp_path, kind, f"{runtime}{i}")
        for kind in KINDS
        for runtime in RUNTIMES
        for i in range(2)
    ]
    for saver in savers:
        saver.start()
    wait_until(lambda: all(saver.has_saved() for saver in savers))
    choice = random.Random(0)
    for _ in range(ROUNDS):
        end = time.monotonic() + ROUND
        for saver in choice.sample(savers, KILLED_EACH_ROUND):
            time.sleep(choice.random() * ROUND / KILLED_EACH_ROUND)
            saver.kill()
            saver.start()
        time.sleep(max(end - time.monotonic(), 0))
    for saver in savers:
        saver.kill()

    assert {path.name for path in tmp_path.glob("*.bin")} == set(KINDS)
    for kind in KINDS:
        there = set(kernels_on_disk(tmp_path / kind))
        of_kind = [saver for saver in savers if saver.kind == kind]
        for saver in of_kind:
            assert saver.saved
            assert set(saver.saved) <= there
        with installed_device() as device:
            device.set_environment(**KINDS[kind])
            for runtime in RUNTIMES:
                live(runtime, tmp_path, *(saver.saved[-1] for saver in of_kind))
            assert device.counters()["compilations"] == 0
