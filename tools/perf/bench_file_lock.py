"""FileLock against the bare system calls and against Python's filelock, all measured in this run.

bazel run -c opt //tools/perf:bench_file_lock [-- --json FILE]
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock

TURNS = 21
CALLS_PER_TURN = 200


@dataclass(frozen=True)
class Row:
    """One line of the table; times in seconds."""

    what: str
    value: float
    baseline: str
    baseline_value: float
    target: str = ""
    reached: bool | None = None

    @property
    def ratio(self) -> float:
        return self.value / self.baseline_value


def measure_filelock(path: Path) -> float:
    """Seconds for acquire and release of one reused object: lower quartile of turns."""
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
    bare, own = native["bare"], native["reused_object"]
    median, p99 = native["hand_over_median"], native["hand_over_p99"]
    cpu = native["waiter_cpu_share"]
    calls = "open, flock, flock, close"
    name = f"filelock {filelock.__version__}"
    interval = "filelock's poll interval"
    return [
        Row("acquire + release", own, calls, bare, "<= 1.6 x", own <= 1.6 * bare),
        Row("acquire + release", own, name, python),
        Row("hand-over, median", median, interval, poll, "<= 3 ms", median <= 3e-3),
        Row(
            "hand-over, 99th percentile", p99, interval, poll, "<= 10 ms", p99 <= 10e-3
        ),
        Row(
            "CPU time, waiting 5 s", 5 * cpu, "one core", 5.0, "<= 0.5 %", cpu <= 0.005
        ),
    ]


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.2f} us"


def print_table(rows: list[Row], hand_over_rounds: int) -> None:
    print(
        "core/util/file_lock. acquire + release: uncontended, one reused object."
        f"\nhand-over: from release in one process to acquisition in another, over"
        f" {hand_over_rounds} waits:\nheld for up to 50 ms, 1 in 100 for 1 s."
    )
    line = "{:27} {:>13} {:>26} {:>16} {:>8} {:>15} {}"
    print(
        line.format("what", "FileLock", "baseline", "it takes", "ratio", "target", "")
    )
    for row in rows:
        print(
            line.format(
                row.what,
                microseconds(row.value),
                row.baseline,
                microseconds(row.baseline_value),
                f"{row.ratio:.4f}",
                row.target,
                {None: "", True: "reached", False: "MISSED"}[row.reached],
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it there too")
    arguments = parser.parse_args()
    # Under `bazel run` a relative path means the directory that it was typed in.
    typed_in = os.environ.get("BUILD_WORKING_DIRECTORY", ".")
    with tempfile.TemporaryDirectory() as directory:
        output = subprocess.run(
            [os.environ["FILE_LOCK_BENCH"], directory],
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
        native = json.loads(output)
        path = Path(directory) / "python.lock"
        rows = table(
            native, measure_filelock(path), filelock.FileLock(path).poll_interval
        )
    print_table(rows, int(native["hand_over_rounds"]))
    if arguments.json is not None:
        report = {
            "native": native,
            "rows": [asdict(row) | {"ratio": row.ratio} for row in rows],
        }
        file = Path(typed_in) / arguments.json
        file.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
