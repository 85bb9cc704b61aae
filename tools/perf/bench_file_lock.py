"""Compares FileLock with bare system calls and with Python's filelock, measured in the same run.

Acquire and release are measured on one reused object, without contention. A hand-over lasts from
the release in one process to the acquisition in another one that waited. The lock is held for up to
50 ms, or for 1 s in one of 100 rounds.

bazel run -c opt //tools/perf:bench_file_lock [-- --json FILE] [--plot FILE] [--dir DIR]
"""

import statistics
import tempfile
import time
from pathlib import Path

import filelock

from tools.perf.report import Row, argument_parser, measured_by, report

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
    ours, peer = "FileLock", f"filelock {filelock.__version__}"
    calls, interval, core = "bare system calls", "filelock's poll", "one core"
    acquire, hand_over = "acquire and release", "hand-over"
    bare, own = native["bare"] * 1e6, native["reused_object"] * 1e6
    median, p99 = native["hand_over_median"] * 1e3, native["hand_over_p99"] * 1e3
    cpu = native["waiter_cpu_share"]
    return [
        Row(acquire, ours, calls, "µs", bare, own, 1.6),
        Row(acquire, ours, peer, "µs", python * 1e6, own),
        Row(f"{hand_over}, median", ours, interval, "ms", poll * 1e3, median, 0.06),
        Row(
            f"{hand_over}, 99th percentile", ours, interval, "ms", poll * 1e3, p99, 0.2
        ),
        Row("CPU time of a wait of 5 s", ours, core, "ms", 5e3, 5e3 * cpu, 0.005),
    ]


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
        native = measured_by("FILE_LOCK_BENCH", directory)
        path = Path(directory) / "python.lock"
        poll = filelock.FileLock(path).poll_interval
        rows = table(native, measure_filelock(path), poll)
    report("File lock", rows, arguments)


if __name__ == "__main__":
    main()
