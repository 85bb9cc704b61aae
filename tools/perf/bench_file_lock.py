"""Compares FileLock with bare system calls and with Python's filelock, measured in the same run.

Acquire and release is measured for one reused object, without contention. A hand-over lasts from
the release in one process to the acquisition in another one that waited. The lock is held for up to
50 ms, or for 1 s in one of 100 rounds.

bazel run -c opt //tools/perf:bench_file_lock [-- --json FILE]
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import filelock

from tools.perf.report import Row, print_rows, typed_path, write_json

TURNS = 21
CALLS_PER_TURN = 200


def measure_filelock(path: Path) -> float:
    """Returns the seconds to acquire and release one reused object, the lower quartile of turns."""
    lock = filelock.FileLock(path)
    turns = []
    for _ in range(TURNS):
        start = time.perf_counter()
        for _ in range(CALLS_PER_TURN):
            lock.acquire(timeout=0)
            lock.release()
        turns.append((time.perf_counter() - start) / CALLS_PER_TURN)
    return statistics.quantiles(turns, n=4)[0]


def table(native: dict[str, float], python: float, poll: float) -> list[Row]:
    name = f"acquire + release: to filelock {filelock.__version__}"
    bare, own = native["bare"] * 1e6, native["reused_object"] * 1e6
    median, p99 = native["hand_over_median"] * 1e3, native["hand_over_p99"] * 1e3
    cpu = native["waiter_cpu_share"]
    return [
        Row("acquire + release: to open, flock twice, close", "us", bare, own, 1.6),
        Row(name, "us", python * 1e6, own),
        Row("hand-over, median: to filelock's poll", "ms", poll * 1e3, median, 0.06),
        Row("hand-over, 99th percentile: to the same", "ms", poll * 1e3, p99, 0.2),
        Row("CPU time of a wait of 5 s: to one core", "ms", 5e3, 5e3 * cpu, 0.005),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=typed_path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        output = subprocess.run(
            [os.environ["FILE_LOCK_BENCH"], directory],
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
        path = Path(directory) / "python.lock"
        poll = filelock.FileLock(path).poll_interval
        rows = table(json.loads(output), measure_filelock(path), poll)
    print_rows(rows)
    if arguments.json is not None:
        write_json(rows, arguments.json)


if __name__ == "__main__":
    main()
