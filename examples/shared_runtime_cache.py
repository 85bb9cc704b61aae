"""Processes of both runtimes share one runtime cache: cold at first, then warm.

Two processes run their engines on the C++ runtime and two on the Python one, all at once and all on
one cache file. Each has one engine that all have and one of its own. At first the file is missing,
so they compile every kernel.

They go on running, as servers do. A fifth process starts 3 s after their first results and finds
the kernels on disk. Then one of the four is killed (SIGKILL), and the others end. At last the four
start again. A kernel that the fifth process or one of these compiles was lost.

They run on the GPU, or, where there is none that TensorRT-RTX has engines for, on a simulated
device, whose kernels take a set time to compile.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

PROCESS = "process"  # the first argument of the processes that are started
RUNTIMES = ("C++", "C++", "Python", "Python")
KILLED = 1  # index of the process that is killed
PAUSE = 3  # seconds from the first results to the start of the fifth process
SIMULATED_KERNELS = 12  # of each engine
SIMULATED_COMPILE_TIME = 0.05  # seconds for a kernel


@dataclass
class Start:
    """One start of one process. `compiled` and `reused` are numbers of kernels on the simulated
    device, and bytes of the cache on a GPU, where kernels can't be counted."""

    process: int
    engine: int  # which it has beside that of all
    runtime: str
    kind: str  # "cold", "late" or "warm"
    state: str = "starts"
    compiled: int = 0
    reused: int = 0
    seconds: float = 0.0  # from the engines being loaded to their first results


def make_engines(folder: Path, on_gpu: bool) -> None:
    """Writes an engine for each process, and one for all."""
    import torch

    import torch_tensorrt
    from tests.util.simulation.simulated_device import relu_plan
    from torch_tensorrt.dynamo.runtime import TorchTensorRTModule

    for i, name in enumerate(["all", *map(str, range(len(RUNTIMES)))]):
        if on_gpu:
            width = 16 * (i + 1)
            model = torch.nn.Sequential(
                torch.nn.Conv2d(3, width, 3),
                torch.nn.ReLU(),
                torch.nn.Conv2d(width, 2 * width, 3),
                torch.nn.AdaptiveAvgPool2d(1),
            ).eval()
            module = torch_tensorrt.compile(model, (torch.ones(1, 3, 64, 64),))
        else:
            plan = relu_plan(prefix=name, kernels=SIMULATED_KERNELS, kernel_size=65536)
            module = TorchTensorRTModule(plan, ["x"], ["y"])
        module.save(folder / name)


def run_engines(folder: Path, engine: int, runtime: str, on_gpu: bool) -> None:
    """One start of a process: says when it is ready, waits for a line, prints what it did, and
    goes on running until its stdin is closed."""
    import torch

    import torch_tensorrt
    from tests.util.simulation.simulated_device import installed_device
    from torch_tensorrt.runtime import RuntimeCache, RuntimeSettings

    with ExitStack() as stack:
        device: Any = None if on_gpu else stack.enter_context(installed_device())
        if device is not None:
            device.set_compile_time(SIMULATED_COMPILE_TIME)
        settings = RuntimeSettings(runtime_cache=folder / "runtime_cache.bin")
        modules = [
            torch_tensorrt.load(
                folder / name,
                runtime_settings=settings,
                use_python_runtime=runtime == "Python",
            )
            for name in ("all", str(engine))
        ]
        for module in modules:
            module.setup_engine()
        x = torch.ones(1, 3, 64, 64, device="cuda") if on_gpu else torch.ones(4)
        print("ready", flush=True)
        sys.stdin.readline()

        start = time.monotonic()
        for module in modules:
            module(x)
        if device is None:
            torch.cuda.synchronize()
        seconds = time.monotonic() - start
        if device is None:
            cache = modules[0].runtime_settings.runtime_cache
            assert isinstance(cache, RuntimeCache)
            statistics = cache.statistics()
            compiled, reused = statistics.size_added, statistics.bytes_loaded
        else:
            counters = device.counters()
            compiled, reused = counters["compilations"], counters["cache_hits"]
        result = {"compiled": compiled, "reused": reused, "seconds": seconds}
        print(json.dumps(result), flush=True)
        sys.stdin.read()


def follow(process: subprocess.Popen[str], start: Start) -> None:
    """Reads what a started process did."""
    assert process.stdout is not None
    result = process.stdout.readline()
    if not result:
        start.state = "failed"
        return
    for key, value in json.loads(result).items():
        setattr(start, key, value)
    start.state = "serves"


def start_all(
    folder: Path, starts: list[Start], on_gpu: bool, show: Callable[[], None]
) -> list[subprocess.Popen[str]]:
    """Starts a process for each, has them begin at one moment, and shows how they get on.

    They go on running.
    """
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, __file__, PROCESS, str(folder)),
                *(str(start.engine), start.runtime, "gpu" if on_gpu else "simulated"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for start in starts
    ]
    for process, start in zip(processes, starts, strict=True):
        assert process.stdout is not None
        start.state = "ready" if process.stdout.readline() == "ready\n" else "failed"
        show()
    exit_if_failed(starts)
    followers = [
        threading.Thread(target=follow, args=pair)
        for pair in zip(processes, starts, strict=True)
    ]
    for process, start, follower in zip(processes, starts, followers, strict=True):
        assert process.stdin is not None
        start.state = "runs"
        print(file=process.stdin, flush=True)
        follower.start()
    while any(follower.is_alive() for follower in followers):
        show()
        time.sleep(0.05)
    show()
    exit_if_failed(starts)
    return processes


def end_all(
    processes: list[subprocess.Popen[str]],
    starts: list[Start],
    show: Callable[[], None],
) -> None:
    """Lets processes end, each on its own."""
    for process, start in zip(processes, starts, strict=True):
        assert process.stdin is not None
        process.stdin.close()
        states = {0: "ended", -signal.SIGKILL: "killed"}
        start.state = states.get(process.wait(), "failed")
        show()
    exit_if_failed(starts)


def exit_if_failed(starts: list[Start]) -> None:
    if any(start.state == "failed" for start in starts):
        sys.exit("a process failed; its words are above")


def make_table(starts: list[Start], unit: str) -> Table:
    table = Table(box=box.SIMPLE)
    for column in ("process", "runtime", "start", "state"):
        table.add_column(column)
    for column in (f"compiled, {unit}", f"reused, {unit}", "first result, ms"):
        table.add_column(column, justify="right")
    for start in starts:
        row = [str(start.process), start.runtime, start.kind, start.state]
        if start.seconds:
            figures = (start.compiled, start.reused, round(start.seconds * 1000))
            row += map(str, figures)
        table.add_row(*row)
    return table


def draw(cold: list[Start], warm: list[Start], where: str, path: Path) -> None:
    """A picture of how long each process waited for its first result."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for offset, label, color, starts in (
        (-0.2, "cold", "#b5532a", cold),
        (0.2, "warm", "#2a7fb5", warm),
    ):
        positions = [start.process + offset for start in starts]
        milliseconds = [start.seconds * 1000 for start in starts]
        bars = axes.bar(positions, milliseconds, 0.38, label=label, color=color)
        axes.bar_label(bars, fmt="%.0f")
    names = [f"{start.process}: {start.runtime}" for start in cold]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel("process and its runtime")
    axes.set_ylabel("time to the first results, ms")
    axes.set_title(f"Four processes on one runtime cache, on {where}", fontsize=11)
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--picture",
        type=Path,
        help="where to put the picture, by default in a new temporary directory",
    )
    parser.add_argument("--simulated", action="store_true", help="even on a GPU")
    arguments = parser.parse_args()

    # Here, because it imports torch, for which --help should not wait.
    from tests.util.simulation.supported_gpu import supported_gpu

    gpu = None if arguments.simulated else supported_gpu()
    where = gpu or "a simulated device"
    print(f"Running on {where}.")
    cold, warm = (
        [Start(i, i, runtime, kind) for i, runtime in enumerate(RUNTIMES)]
        for kind in ("cold", "warm")
    )
    # It needs the kernels of the process that is killed then, and has the other runtime.
    late = Start(len(RUNTIMES), KILLED, "Python", "late")
    starts = [*cold, late, *warm]
    with tempfile.TemporaryDirectory() as name, Live(auto_refresh=False) as live:
        folder = Path(name)

        def show() -> None:
            unit = "bytes" if gpu else "kernels"
            live.update(make_table(starts, unit), refresh=True)

        show()
        make_engines(folder, gpu is not None)
        servers = start_all(folder, cold, gpu is not None, show)
        time.sleep(PAUSE)
        end_all(start_all(folder, [late], gpu is not None, show), [late], show)
        servers[KILLED].kill()
        end_all(servers, cold, show)
        end_all(start_all(folder, warm, gpu is not None, show), warm, show)
        size = (folder / "runtime_cache.bin").stat().st_size

    picture = arguments.picture or Path(tempfile.mkdtemp(), "shared_runtime_cache.png")
    draw(cold, warm, where, picture)
    lost = sum(start.compiled for start in (late, *warm))
    cold_time, warm_time = (
        median(s.seconds for s in starts) for starts in (cold, warm)
    )
    unit = "bytes of kernels" if gpu else "kernels"
    summary = Table(box=box.SIMPLE, show_header=False)
    summary.add_column()
    summary.add_column(justify="right")
    for row, figure in (
        (f"{unit} compiled, cold", sum(start.compiled for start in cold)),
        (f"{unit} reused, warm", sum(start.reused for start in warm)),
        (f"{unit} lost", lost),
        ("bytes in the cache file", size),
        ("median time to the first results, cold, ms", round(cold_time * 1000)),
        ("median time to the first results, warm, ms", round(warm_time * 1000)),
        ("saved by a warm start, ms", round((cold_time - warm_time) * 1000)),
    ):
        summary.add_row(row, str(figure))
    Console().print(summary)
    print(f"Picture: {picture}")
    if lost:
        sys.exit(f"{lost} {unit} were lost")


def main_of_process(argv: list[str]) -> None:
    folder, engine, runtime, where = argv
    run_engines(Path(folder), int(engine), runtime, where == "gpu")


if __name__ == "__main__":
    if sys.argv[1:2] == [PROCESS]:
        main_of_process(sys.argv[2:])
    else:
        main()
