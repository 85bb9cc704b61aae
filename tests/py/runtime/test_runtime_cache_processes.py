"""Processes of both runtimes that share one file, and writers that are killed."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

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
    wait_until,
)
from tests.util.simulation.simulated_device import relu_plan

KILLS = 200
PROCESSES = 4  # per runtime
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
            assert max(save.result(DEADLINE) for save in saves) > 0
            assert kernels_missing(RUNTIMES[round % 2], path, *plans) == 0
    files = {entry.name.replace(".merge.lock", ".lock") for entry in tmp_path.iterdir()}
    assert files == {
        f"{round}.bin{suffix}" for round in range(ROUNDS) for suffix in ("", ".lock")
    }


def wait_for_offers(path: Path, number: int) -> None:
    wait_until(lambda: len(offers_for(path)) >= number)


def offers_for(path: Path) -> list[Path]:
    return list(path.parent.glob("cache.bin.*.merge"))


def save_unread(runtime: str, path: Path, plan: Plan) -> int:
    """Saves kernels to a file that the cache has not read and so must merge with."""
    cache = make_cache(runtime)
    start(runtime, plan, cache)
    return cache.save(path)


def test_who_has_the_turn_saves_for_all_who_wait(path: Path, device: Any) -> None:
    plans = [make_plan(name) for name in "abcd"]
    start_and_save("cpp", path, plans[0])
    with children(3) as processes, FileLock(f"{path}.merge.lock") as turn:
        saves = [
            process.begin(save_unread, runtime, path, plan)
            for process, runtime, plan in zip(
                processes, ["cpp", "python", "cpp"], plans[1:], strict=True
            )
        ]
        wait_for_offers(path, 3)
        turn.release()
        written = [save.result(DEADLINE) for save in saves]
    assert sorted(size > 0 for size in written) == [False, False, True]
    assert kernels_missing("python", path, *plans) == 0
    assert offers_for(path) == []


def test_no_saver_overtakes_one_that_merges(
    runtime: str, path: Path, device: Any
) -> None:
    plan = make_plan("a")
    with children(1) as (process,), FileLock(f"{path}.merge.lock") as turn:
        save = process.begin(start_and_save, runtime, path, plan)
        wait_for_offers(path, 1)
        assert not path.exists()
        turn.release()
        assert save.result(DEADLINE) > 0
    assert kernels_missing(runtime, path, plan) == 0


def test_the_kernels_of_a_saver_that_is_killed_while_it_waits_are_saved(
    runtime: str, other_runtime: str, path: Path, device: Any
) -> None:
    plans = [make_plan(name) for name in "abc"]
    start_and_save("cpp", path, plans[0])
    with children(1) as (process,), FileLock(f"{path}.merge.lock") as turn:
        killed = fork_server.Process(
            target=use_device_and_save, args=(runtime, path, plans[1])
        )
        killed.start()
        wait_for_offers(path, 1)
        killed.kill()
        killed.join()
        save = process.begin(save_unread, other_runtime, path, plans[2])
        wait_for_offers(path, 2)
        turn.release()
        assert save.result(DEADLINE) > 0
    assert kernels_missing(runtime, path, *plans) == 0
    assert offers_for(path) == []


def use_device_and_save(runtime: str, path: Path, plan: Plan) -> None:
    use_device()
    save_unread(runtime, path, plan)


@pytest.mark.parametrize("of", ["nobody", "another user"])
def test_an_offer_that_can_not_be_trusted_is_not_merged(
    runtime: str, path: Path, device: Any, of: str
) -> None:
    plans = [make_plan(name) for name in "abc"]
    start_and_save(runtime, path.with_name("other.bin"), plans[0])
    offer = path.with_name("cache.bin.1-0123456789abcdef.merge")
    if of == "nobody":
        offer.write_bytes(b"damaged")
    else:
        path.with_name("other.bin").rename(offer)
        try:
            os.chown(offer, 4711, 4711)
        except OSError as error:
            pytest.skip(f"this user can't change the owner of files: {error}")
    with offer.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # or its writer would count as dead
        start_and_save(runtime, path, plans[1])
        save_unread(runtime, path, plans[2])
    assert offer.exists()
    assert kernels_missing(runtime, path, *plans[1:]) == 0
    assert kernels_missing(runtime, path, plans[0]) > 0


def plan_of(name: str, kernels: int) -> Plan:
    engine = relu_plan(f"{name}-", kernels, kernel_size=4096)
    return Plan(engine, ["x"], ["y"], (4,))


def save_until_killed(
    runtime: str, path: Path, name: str, finished: Connection
) -> None:
    """Saves one more kernel again and again, and sends the number of saved kernels."""
    use_device()
    cache = make_cache(runtime, path)
    for kernels in itertools.count(1):
        start(runtime, plan_of(name, kernels), cache)
        cache.save()
        finished.send_bytes(kernels.to_bytes(8, "little"))


def kill_a_writer(runtime: str, path: Path, name: str, moment: float) -> int:
    """Kills a writer at `moment` within its next two saves. Returns the number of saved kernels."""
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
