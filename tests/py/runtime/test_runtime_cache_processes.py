"""Processes of both runtimes that share one file, and writers that are killed."""

from __future__ import annotations

import itertools
import random
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.py.runtime.runtime_cache_testing import RUNTIMES
from tests.py.runtime.runtime_testing import (
    DEADLINE,
    Plan,
    children,
    fork_server,
    kernels_missing,
    make_cache,
    make_plan,
    start,
    start_and_save,
    use_device,
    uses_gpu,
)
from tests.util.simulation.simulated_device import relu_plan

KILLS = 200
PROCESSES = 4  # of each runtime
ROUNDS = 20


@pytest.mark.parametrize("reader", RUNTIMES)
@pytest.mark.parametrize("writer", RUNTIMES)
def test_a_cache_of_one_runtime_warms_the_other(
    writer: str, reader: str, path: Path, device: Any
) -> None:
    plans = [make_plan(name) for name in "ab"]
    with children(1) as (process,):
        assert process(start_and_save, writer, path, *plans) > 0
    written = path.read_bytes()
    assert kernels_missing(reader, path, *plans) == 0
    assert start_and_save(reader, path, *plans) == 0
    assert path.read_bytes() == written


def test_processes_of_both_runtimes_lose_nothing(tmp_path: Path) -> None:
    runtimes = RUNTIMES * PROCESSES
    plans = [make_plan(f"p{i}") for i in range(len(runtimes))]
    with children(len(runtimes)) as processes:
        for round in range(ROUNDS):
            path = tmp_path / f"{round}.bin"
            saves = [
                process.begin(start_and_save, runtime, path, plan)
                for process, runtime, plan in zip(
                    processes, runtimes, plans, strict=True
                )
            ]
            assert min(save.result(DEADLINE) for save in saves) > 0
            assert kernels_missing(RUNTIMES[round % 2], path, *plans) == 0
    files = {entry.name.replace(".merge.lock", ".lock") for entry in tmp_path.iterdir()}
    assert files == {
        f"{round}.bin{suffix}" for round in range(ROUNDS) for suffix in ("", ".lock")
    }


def plan_of(name: str, kernels: int) -> Plan:
    engine = relu_plan(f"{name}-", kernels, kernel_size=4096)
    return Plan(engine, ["x"], ["y"], (4,))


def save_until_killed(
    runtime: str, path: Path, name: str, finished: Connection
) -> None:
    """Saves one more kernel again and again, and tells how many are saved."""
    use_device()
    cache = make_cache(runtime, path)
    for kernels in itertools.count(1):
        start(runtime, plan_of(name, kernels), cache)
        cache.save()
        finished.send_bytes(kernels.to_bytes(8, "little"))


def kill_a_writer(runtime: str, path: Path, name: str, moment: float) -> int:
    """How many kernels it had saved when it was killed, at that moment of its next two saves."""
    finished, theirs = fork_server.Pipe(duplex=False)
    writer = fork_server.Process(
        target=save_until_killed, args=(runtime, path, name, theirs)
    )
    writer.start()
    theirs.close()
    with finished:
        saved = [finished.recv_bytes()]
        first = time.monotonic()
        saved.append(finished.recv_bytes())
        time.sleep(moment * 2 * (time.monotonic() - first))
        writer.kill()
        writer.join()
        with suppress(EOFError):
            while True:
                saved.append(finished.recv_bytes())
    return int.from_bytes(saved[-1], "little")


@pytest.mark.skipif(uses_gpu(), reason="takes hundreds of plans")
def test_killed_writers_leave_what_they_finished(
    runtime: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moments = random.Random(runtime)
    plans = []
    for round in range(KILLS):
        name = str(round)
        saved = kill_a_writer(runtime, path, name, moments.random())
        plans.append(plan_of(name, saved))
        assert kernels_missing(RUNTIMES[round % 2], path, plans[-1]) == 0
    for reader in RUNTIMES:
        assert kernels_missing(reader, path, *plans) == 0
    assert caplog.records == []
