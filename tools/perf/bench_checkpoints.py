"""Measures what checkpoints cost a process, and what they save of a process that is killed.

Each measurement runs in its own process, on the simulated device.

- Latency: one engine runs all the time, while two threads start others on its cache, so that
  kernels compile all the time. Rounds with and without checkpoints alternate. A figure is the
  median of the rounds' 99th percentiles.
- Steady: a warm engine on a cache of 64 MiB runs every 10 ms. The CPU time of the checkpoint
  thread is measured after the two checks of the cache that follow the start. There is no target for
  the first minute of an engine that specializes its kernels lazily, because its cache is checked
  for longer.
- Growing: a cache of 256 MiB gets new kernels all the time. The CPU time of one checkpoint is
  compared with the time from its end to the end of the next, which depends on how long it took.
- Killed: a process that compiles all the time is killed. The promise covers the kernels of
  inferences that ended 3 s before the kill, or 101 times the work of the last checkpoint before it
  if that is longer.

All of it takes about 25 minutes. The options shorten it.

bazel run -c opt //tools/perf:bench_checkpoints [-- --json FILE] [--plot FILE] [--dir DIR]
    [--rounds N] [--round-seconds S] [--steady-seconds S] [--mebibytes N] [--kills N]
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from tests.util.simulation.simulated_device import (
    dynamic_relu_plan,
    installed_device,
    relu_plan,
)
from tools.perf.engines import (
    USES_PYTHON_RUNTIME,
    fork,
    in_own_process,
    start_engine,
)
from tools.perf.report import Row, argument_parser, at_least, report
from torch_tensorrt.runtime import RuntimeCache

MEBIBYTE = 1024 * 1024
IMAGE = (1, 3, 512, 512)  # input of the engine whose latency is measured
COMPILE_TIME = 0.05  # seconds per kernel
KERNELS = 4  # per engine that is started
KERNEL_SIZE = 16 * 1024
CHECKS = 2  # of a cache without new kernels, after which it is left alone
PROMISE = 3.0  # seconds
WORK_FACTOR = 101  # times the work of the last checkpoint, if that is longer
THREAD_NAMES = ("trt-checkpoint", "torch_tensorrt checkpoints")


def plan_of(name: object) -> bytes:
    return relu_plan(f"{name}_", KERNELS, KERNEL_SIZE)


def cache_of(module: Any) -> RuntimeCache:
    cache: RuntimeCache = module.runtime_settings.runtime_cache
    return cache


def write_cache(path: Path, mebibytes: int) -> None:
    """Writes a cache of that size, with the kernels of the plans "file" and "lazy"."""
    with installed_device() as device:
        cache = RuntimeCache(path, use_python_runtime=False)
        engines = [
            start_engine(plan, cache, False)
            for plan in (file_plan(mebibytes), lazy_plan())
        ]
        device.wait_for_background_compilation()
        cache.save()
        engines.clear()


def file_plan(mebibytes: int) -> bytes:
    return relu_plan("file_", mebibytes * MEBIBYTE // KERNEL_SIZE, KERNEL_SIZE)


def lazy_plan() -> bytes:
    return dynamic_relu_plan([1], [4], [8], "lazy_", KERNELS, KERNEL_SIZE)


@contextmanager
def compiling(path: Path, uses_python: bool, threads: int) -> Iterator[None]:
    """Starts new engines on the cache in threads, one after the other, during the block."""
    is_over = threading.Event()

    def compile_kernels(thread: int) -> None:
        for i in count():
            if is_over.is_set():
                return
            start_engine(plan_of(f"thread{thread}_{i}"), path, uses_python)

    running = [
        threading.Thread(target=compile_kernels, args=[i]) for i in range(threads)
    ]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in running:
            thread.join()


def latencies(
    path: Path, uses_python: bool, rounds: int, seconds: float
) -> tuple[float, float]:
    """Returns milliseconds without and with checkpoints. The order of two rounds alternates."""
    percentiles: dict[bool, list[float]] = {False: [], True: []}
    made = {False: 0, True: 0}
    x = torch.ones(IMAGE)
    plan = relu_plan("warm_", KERNELS, KERNEL_SIZE, IMAGE)
    with installed_device() as device:
        device.set_compile_time(COMPILE_TIME)
        module = start_engine(plan, path, uses_python, x)
        cache = cache_of(module)
        with compiling(path, uses_python, threads=2):
            for i in range(2 * rounds):
                cache.checkpoints = has_checkpoints = i % 4 in (1, 2)
                time.sleep(0.5)  # a checkpoint may be under way
                checkpoints = cache.statistics().checkpoints
                times = []
                end = time.perf_counter() + seconds
                while (begin := time.perf_counter()) < end:
                    module(x)
                    times.append(time.perf_counter() - begin)
                percentiles[has_checkpoints].append(quantiles(times, n=100)[-1] * 1e3)
                made[has_checkpoints] += cache.statistics().checkpoints - checkpoints
    if made[False] > 0 or made[True] == 0:
        raise RuntimeError(
            f"There were {made[False]} checkpoints in rounds without them, expected 0, and "
            f"{made[True]} in rounds with them"
        )
    return median(percentiles[False]), median(percentiles[True])


def cpu_of_checkpoints() -> float:
    """Returns the milliseconds of CPU time that this process's checkpoint thread has used."""
    python = [t.native_id for t in threading.enumerate() if t.name == THREAD_NAMES[1]]
    threads = [
        task
        for task in Path("/proc/self/task").iterdir()
        if int(task.name) in python
        or (task / "comm").read_text().strip() == THREAD_NAMES[0]
    ]
    if not threads:
        raise RuntimeError("This process has no checkpoint thread")
    return (
        sum(int((task / "schedstat").read_text().split()[0]) for task in threads) / 1e6
    )


def cpu_of_warm_process(
    path: Path, uses_python: bool, plan: bytes, is_steady: bool, seconds: float
) -> float:
    """Returns the milliseconds of CPU time from when the process is steady, or from its start."""
    x = torch.ones(4)
    with installed_device() as device:
        module = start_engine(plan, path, uses_python)
        before = 0.0
        if is_steady:
            # A check serializes the cache once.
            checked = device.calls("IRuntimeCache::serialize") + CHECKS
            while device.calls("IRuntimeCache::serialize") < checked:
                time.sleep(0.1)
            time.sleep(1)  # the last check may be under way
            before = cpu_of_checkpoints()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            module(x)
            time.sleep(0.01)
        cpu = cpu_of_checkpoints() - before
        if compiled := device.counters()["compilations"]:
            raise RuntimeError(f"{compiled} kernels were compiled, expected 0")
        return cpu


def cpu_of_growing_cache(
    path: Path, uses_python: bool, mebibytes: int
) -> tuple[float, float]:
    """Returns the milliseconds from one checkpoint to the next, and the CPU time of the first."""

    def next_checkpoint() -> float:
        file = path.stat()
        while os.path.samestat(path.stat(), file):
            time.sleep(0.01)
        return time.monotonic() * 1e3

    with installed_device() as device:
        device.set_compile_time(COMPILE_TIME)
        module = start_engine(file_plan(mebibytes), path, uses_python)
        with compiling(path, uses_python, threads=1):
            cpu = cpu_of_checkpoints()
            begin = next_checkpoint()
            cpu = cpu_of_checkpoints() - cpu
            end = next_checkpoint()
        cache_of(module).autosave_on_del = False
        return end - begin, cpu


def compile_until_killed(path: Path, uses_python: bool, sender: Connection) -> None:
    """Sends the number and time of each engine's first result, and each checkpoint's seconds."""
    with installed_device() as device:
        device.set_compile_time(COMPILE_TIME)
        lock = threading.Lock()
        cache = cache_of(start_engine(plan_of("first"), path, uses_python))

        def watch() -> None:
            serialized = device.calls("IRuntimeCache::serialize")
            begin: float | None = None
            checkpoints = 0
            while True:
                if device.calls("IRuntimeCache::serialize") > serialized:
                    begin = time.monotonic()  # a checkpoint begins by serializing
                    serialized = device.calls("IRuntimeCache::serialize")
                if begin is not None:
                    done = cache.statistics().checkpoints
                    serialized += 1  # statistics() serialized too
                    if done > checkpoints:
                        with lock:
                            sender.send(("work", time.monotonic() - begin))
                        checkpoints, begin = done, None
                time.sleep(0.001)

        threading.Thread(target=watch, daemon=True).start()
        for i in count():
            start_engine(plan_of(i), path, uses_python)
            with lock:
                sender.send((i, time.monotonic()))


def kernels_promised_and_lost(path: Path, uses_python: bool) -> tuple[int, int]:
    """Kills a process at a random moment. Returns the kernels promised and those lost."""
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(
        target=compile_until_killed, args=(path, uses_python, sender)
    )
    process.start()
    sender.close()
    time.sleep(random.uniform(6, 10))
    killed = time.monotonic()
    process.kill()
    process.join()
    results: dict[int, float] = {}
    work = 0.0
    try:
        while True:
            what, figure = receiver.recv()
            if what == "work":
                work = figure
            else:
                results[what] = figure
    except EOFError:
        pass
    age = max(PROMISE, WORK_FACTOR * work)
    promised = [i for i, end in results.items() if end < killed - age]
    if not promised:
        raise RuntimeError(
            f"No kernel of {len(results)} engines was promised, because the last checkpoint took "
            f"{work:.3f} s"
        )
    lost = in_own_process(kernels_compiled, path, uses_python, promised)
    return KERNELS * len(promised), lost


def kernels_compiled(path: Path, uses_python: bool, engines: list[int]) -> int:
    """Returns how many of those engines' kernels the file lacks."""
    with installed_device() as device:
        for i in engines:
            start_engine(plan_of(i), path, uses_python)
        compiled: int = device.counters()["compilations"]
        return compiled


def bench(directory: Path, runtime: str, arguments: argparse.Namespace) -> list[Row]:
    python = USES_PYTHON_RUNTIME[runtime]
    small, steady, large = (directory / name for name in ("small", "steady", "large"))
    in_own_process(write_cache, steady, 64)
    in_own_process(write_cache, large, arguments.mebibytes)
    without, with_ = in_own_process(
        latencies, small, python, arguments.rounds, arguments.round_seconds
    )
    seconds = arguments.steady_seconds
    steady_cpu = in_own_process(
        cpu_of_warm_process, steady, python, file_plan(64), True, seconds
    )
    start_cpu = in_own_process(
        cpu_of_warm_process, steady, python, lazy_plan(), False, seconds
    )
    cycle, growing_cpu = in_own_process(
        cpu_of_growing_cache, large, python, arguments.mebibytes
    )
    promised = lost = 0
    for i in range(arguments.kills):
        figures = kernels_promised_and_lost(directory / f"killed{i}", python)
        promised, lost = promised + figures[0], lost + figures[1]

    def row(
        what: str,
        beside: str,
        unit: str,
        baseline: float,
        measured: float,
        limit: float | None = None,
    ) -> Row:
        what = f"{runtime}, {what}"
        return Row(what, "checkpoints", beside, unit, baseline, measured, limit)

    core = seconds * 1e3
    growing = f"CPU at {arguments.mebibytes} MiB and more"
    return [
        row("99th percentile of latency", "no checkpoints", "ms", without, with_, 1.05),
        row("CPU of a steady process", "one core", "ms", core, steady_cpu, 0.001),
        row("CPU of a warm start, lazy", "one core", "ms", core, start_cpu),
        row(growing, "one core", "ms", cycle, growing_cpu, 0.01),
        row("kernels lost by SIGKILL", "promised kernels", "", promised, lost, 0),
    ]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=at_least(1), default=12, metavar="N")
    parser.add_argument("--round-seconds", type=at_least(1), default=5, metavar="S")
    parser.add_argument("--steady-seconds", type=at_least(1), default=60, metavar="S")
    parser.add_argument(
        "--mebibytes",
        type=at_least(1),
        default=256,
        metavar="N",
        help="size of the growing cache",
    )
    parser.add_argument("--kills", type=at_least(1), default=10, metavar="N")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for runtime in USES_PYTHON_RUNTIME:
        with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
            rows += bench(Path(directory), runtime, arguments)
    report("Checkpoints", rows, arguments)


if __name__ == "__main__":
    main()
