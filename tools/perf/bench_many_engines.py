"""Compares many engines of one process on one path with the same on one explicit RuntimeCache.

Each measurement runs in its own process, on the simulated device. The cache file has 64 MiB. Each
engine uses 4 kernels of it, of 64 KiB each, and compiles none.

A start lasts from when the imports and the plans are ready to the last engine's first result. An
end releases the modules in the middle of a program, and the explicit RuntimeCache with them. It
includes the save. Peak memory is what a process needs beyond what it has after its imports.

bazel run -c opt //tools/perf:bench_many_engines [-- --json FILE] [--plot FILE] [--dir DIR]
    [--rounds N]
"""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.util.simulation.simulated_device import installed_device, relu_plan
from tools.perf.engines import USES_PYTHON_RUNTIME, in_own_process, start_engine
from tools.perf.report import Row, argument_parser, at_least, report
from torch_tensorrt.runtime import RuntimeCache
from torch_tensorrt.runtime._cache.tensor_memory import memory_of

FEW, MANY = 16, 64  # engines
KERNELS = 4  # per engine
KERNEL_SIZE = 64 * 1024
KERNELS_OF_FILE = 1024
LOCK_TIMEOUT = 10.0


def plans_of(number: int, prefix: str = "engine") -> list[bytes]:
    names = [f"{prefix}{i}_" for i in range(number)]
    return [relu_plan(name, KERNELS, KERNEL_SIZE) for name in names]


def write_cache(path: Path) -> None:
    others = KERNELS_OF_FILE - MANY * KERNELS
    with installed_device():
        cache = RuntimeCache(path, use_python_runtime=False)
        for plan in (*plans_of(MANY), relu_plan("other", others, KERNEL_SIZE)):
            start_engine(plan, cache, use_python_runtime=False)
        cache.save()


def peak() -> float:
    """Returns the process's peak memory in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def end(device: Any, used: list[Any]) -> float:
    """Returns the milliseconds that it takes to release all of `used`."""
    serializations = device.calls("IRuntimeCache::serialize")
    begin = time.perf_counter()
    used.clear()
    milliseconds = (time.perf_counter() - begin) * 1e3
    serializations = device.calls("IRuntimeCache::serialize") - serializations
    if serializations != 1:
        raise RuntimeError(f"{serializations} caches were serialized, expected 1")
    return milliseconds


@dataclass(frozen=True)
class Measured:
    start: float  # milliseconds
    end: float  # milliseconds
    memory: float  # MiB


def start_and_end(
    path: Path, use_python_runtime: bool, engines: int, is_explicit: bool
) -> Measured:
    plans = plans_of(engines)
    with installed_device() as device:
        at_first = peak()
        begin = time.perf_counter()
        cache: RuntimeCache | Path = path
        if is_explicit:
            cache = RuntimeCache(
                path, autosave_on_del=True, use_python_runtime=use_python_runtime
            )
        used: list[Any] = [start_engine(p, cache, use_python_runtime) for p in plans]
        start = (time.perf_counter() - begin) * 1e3
        if compiled := device.counters()["compilations"]:
            raise RuntimeError(f"{compiled} kernels were compiled, expected 0")
        used.append(cache)
        del cache
        return Measured(start, end(device, used), peak() - at_first)


def end_with_nothing_new(path: Path, use_python_runtime: bool) -> tuple[float, float]:
    """Returns the milliseconds of the end, and of one serialization, digest and read before it."""
    with installed_device() as device:
        used = [start_engine(p, path, use_python_runtime) for p in plans_of(FEW)]
        cache: Any = used[0].runtime_settings.runtime_cache
        begin = time.perf_counter()
        data = memory_of(cache._handle.serialize())
        if use_python_runtime:  # the C++ runtime's digest is not available here
            hashlib.blake2b(data, digest_size=16).digest()
        path.read_bytes()
        baseline = (time.perf_counter() - begin) * 1e3
        del cache, data
        return end(device, used), baseline


@contextmanager
def lock_held_elsewhere(path: Path) -> Iterator[None]:
    program = (
        "import filelock, sys\n"
        "with filelock.FileLock(sys.argv[1]):\n"
        "  print(flush=True)\n"
        "  sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, f"{path}.lock"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        if not holder.stdout.readline():
            raise RuntimeError("The process that holds the lock failed")
        yield


def end_while_locked(path: Path, use_python_runtime: bool) -> float:
    """Returns the milliseconds of the end when each engine has new kernels."""
    logging.disable(logging.WARNING)  # about the save that fails
    plans = plans_of(FEW, "new")
    with installed_device() as device:
        used = [start_engine(p, path, use_python_runtime) for p in plans]
        with lock_held_elsewhere(path):
            milliseconds = end(device, used)
    if milliseconds < LOCK_TIMEOUT * 1e3:
        raise RuntimeError(f"The end waited for the lock for {milliseconds:.0f} ms")
    return milliseconds


def medians(runs: Sequence[Measured]) -> Measured:
    return Measured(
        median(run.start for run in runs),
        median(run.end for run in runs),
        median(run.memory for run in runs),
    )


def bench(path: Path, runtime: str, rounds: int) -> list[Row]:
    python = USES_PYTHON_RUNTIME[runtime]
    variants = [(n, is_explicit) for n in (FEW, MANY) for is_explicit in (True, False)]
    runs: list[list[Measured]] = [[] for _ in variants]
    nothing_new = []
    for _ in range(rounds):
        for variant, its_runs in zip(variants, runs, strict=True):
            its_runs.append(in_own_process(start_and_end, path, python, *variant))
        nothing_new.append(in_own_process(end_with_nothing_new, path, python))
    few_explicit, few, many_explicit, many = map(medians, runs)
    end_, baseline = (median(times) for times in zip(*nothing_new, strict=True))
    locked = in_own_process(end_while_locked, path, python)
    steps = "serialize, digest, read" if python else "serialize, read"
    explicit = "one RuntimeCache"

    def row(
        what: str,
        beside: str,
        baseline: float,
        measured: float,
        limit: float | None = None,
        unit: str = "ms",
    ) -> Row:
        what = f"{runtime}, {what}"
        return Row(what, "one path", beside, unit, baseline, measured, limit)

    return [
        row("start of 16 engines", explicit, few_explicit.start, few.start, 1.1),
        row(
            "memory of 16 engines",
            explicit,
            few_explicit.memory,
            few.memory,
            1.05,
            "MiB",
        ),
        row("end of 16 engines", explicit, few_explicit.end, few.end, 1.1),
        row("start of 64 engines", explicit, many_explicit.start, many.start, 1.1),
        row("start of 64 engines", "16 engines", few.start, many.start),
        row("end of 64 engines", explicit, many_explicit.end, many.end, 1.1),
        row("end of 64 engines", "16 engines", few.end, many.end),
        row("end of 16 engines, nothing new", steps, baseline, end_, 1.2),
        row(
            "end of 16 engines, locked", "one time-out", LOCK_TIMEOUT * 1e3, locked, 1.1
        ),
    ]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=at_least(1), default=9, metavar="N")
    arguments = parser.parse_args()
    # bench_checkpoints measures checkpoints.
    os.environ["TORCHTRT_RUNTIME_CACHE_CHECKPOINTS"] = "0"
    with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
        path = Path(directory) / "cache.bin"
        in_own_process(write_cache, path)
        rows = []
        for runtime in USES_PYTHON_RUNTIME:
            rows += bench(path, runtime, arguments.rounds)
    report("Many engines in one process", rows, arguments)


if __name__ == "__main__":
    main()
