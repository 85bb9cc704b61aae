"""Processes of both languages on one file: nothing is lost, and a killed writer harms no other."""

from __future__ import annotations

import hashlib
import itertools
import random
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from tests.py.runtime.runtime_cache_testing import RUNTIMES, names_in
from tests.py.runtime.runtime_testing import children, fork_server
from tests.py.runtime.stores import Store
from torchtrt_cache.runtime_cache_file import accept_offer, read_offer

SIZE = 4096  # bytes per record
WRITERS = 2  # per language, not counting those that are killed
RECORDS = 50  # per writer
KILLS = 60


def record(writer: str, number: int) -> bytes:
    name = f"{writer} {number}\n".encode()
    return name + hashlib.shake_256(name).digest(SIZE - len(name))


def records_of(data: bytes) -> set[bytes]:
    return {data[i : i + SIZE] for i in range(0, len(data), SIZE)}


def check(data: bytes) -> set[bytes]:
    """Returns the records, after checking that each byte is as it was written."""
    records = records_of(data)
    assert len(records) * SIZE == len(data)
    for found in records:
        writer, number = found.split(b"\n", 1)[0].decode().split()
        assert found == record(writer, int(number))
    return records


def add(store: Store, added: bytes) -> None:
    if store.replace(added) is not None:
        return
    with store.wait_for_turn(added) as turn:
        while not turn.is_saved:
            contents = store.read()
            assert contents is not None
            data, generation = contents
            offers = {offer: read_offer(offer) for offer in turn.offers}
            offered = {bytes(data) for data in offers.values() if data is not None}
            merged = b"".join(sorted(records_of(data) | {added} | offered))
            if store.replace(merged, generation) is not None:
                for offer in offers:
                    accept_offer(offer)
                return


def add_all(runtime: str, path: Path, writer: str) -> None:
    store = Store(runtime, path, 60)
    for number in range(RECORDS):
        add(store, record(writer, number))


def add_until_killed(runtime: str, path: Path, writer: str, added: Connection) -> None:
    store = Store(runtime, path, 60)
    for number in itertools.count():
        add(store, record(writer, number))
        added.send_bytes(b"1")


def kill_a_writer(runtime: str, path: Path, writer: str, moment: float) -> int:
    """Kills a writer at `moment` within two additions. Returns the number of added records."""
    added, theirs = fork_server.Pipe(duplex=False)
    process = fork_server.Process(
        target=add_until_killed, args=(runtime, path, writer, theirs)
    )
    process.start()
    theirs.close()
    number = 0
    with added, suppress(EOFError):
        added.recv_bytes()
        first = time.monotonic()
        added.recv_bytes()
        number = 2
        time.sleep(moment * 2 * (time.monotonic() - first))
        process.kill()
        while True:
            added.recv_bytes()
            number += 1
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return number


def all_of(writer: str, count: int) -> Iterable[bytes]:
    return (record(writer, number) for number in range(count))


def test_nothing_is_lost_in_a_storm_of_writers_some_of_which_are_killed(
    path: Path,
) -> None:
    random_moments = random.Random(1)
    expected: set[bytes] = set()
    with children(WRITERS * len(RUNTIMES)) as processes:
        runtimes = itertools.cycle(RUNTIMES)
        writers = [
            process.begin(add_all, next(runtimes), path, f"writer{i}")
            for i, process in enumerate(processes)
        ]
        for i in range(len(writers)):
            expected.update(all_of(f"writer{i}", RECORDS))
        for i in range(KILLS):
            name = f"killed{i}"
            count = kill_a_writer(next(runtimes), path, name, random_moments.random())
            expected.update(all_of(name, count))
            check(path.read_bytes())  # without the lock
        for writer in writers:
            writer.result()
    assert expected <= check(path.read_bytes())
    add(Store("python", path), record("last", 0))  # sweeps the killed writers' files
    assert names_in(path.parent) == {
        "cache.bin",
        "cache.bin.lock",
        "cache.bin.merge.lock",
    }
