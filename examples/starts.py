"""Shared by the examples: processes that run engines, and a table and a picture of their starts.

Run as a program, this module is one such process.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

SIMULATED_KERNELS = 12  # per engine
SIMULATED_COMPILE_TIME = 0.05  # seconds per kernel
SIMULATED = "a simulated device"
COLORS = {"cold": "#b5532a", "warm": "#2a7fb5"}


@dataclass
class Start:
    """One start of one process.

    `compiled` and `reused` are numbers of kernels on the simulated device. On a GPU, where kernels
    can't be counted, they are bytes of the cache.
    """

    process: int
    engines: list[str]
    runtime: str
    kind: str  # "cold", "late" or "warm"
    runtime_cache: str  # its path or URL
    environment: dict[str, str] = field(default_factory=dict)
    popen: subprocess.Popen[str] = field(init=False)
    state: str = "starts"
    compiled: int = 0
    reused: int = 0
    seconds: float = (
        0.0  # for the setup of the engines, which loads the cache, and their first results
    )


def read_arguments(description: str) -> tuple[str | None, Path]:
    """Returns the GPU, or None for a simulated device, and where to put the picture."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--picture",
        type=Path,
        help="where to put the picture (default: a new temporary directory)",
    )
    parser.add_argument(
        "--simulated",
        action="store_true",
        help="use the simulated device even if there is a GPU",
    )
    arguments = parser.parse_args()

    # Imported here, because it imports torch, for which --help should not wait.
    from tests.util.simulation.supported_gpu import supported_gpu

    gpu = None if arguments.simulated else supported_gpu()
    print(f"Running on {gpu or SIMULATED}.")
    name = f"{Path(sys.argv[0]).stem}.png"
    return gpu, arguments.picture or Path(tempfile.mkdtemp(), name)


def make_engines(folder: Path, names: Iterable[str], on_gpu: bool) -> None:
    """Writes engines that have different kernels."""
    import torch

    import torch_tensorrt
    from tests.util.simulation.simulated_device import relu_plan
    from torch_tensorrt.dynamo.runtime import TorchTensorRTModule

    for i, name in enumerate(names):
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


def run_engines(
    folder: str, engines: list[str], runtime: str, runtime_cache: str, on_gpu: bool
) -> list[Any]:
    """Sets up the engines, prints "ready", waits for a line, runs the engines, prints the figures,
    and waits until stdin is closed. Returns the engines."""
    import torch

    import torch_tensorrt
    from tests.util.simulation.simulated_device import installed_device
    from torch_tensorrt.runtime import RuntimeCache, RuntimeSettings

    stack = ExitStack()
    atexit.register(stack.close)  # runs after what the cache registers later
    device: Any = None if on_gpu else stack.enter_context(installed_device())
    if device is not None:
        device.set_compile_time(SIMULATED_COMPILE_TIME)
    settings = RuntimeSettings(runtime_cache=runtime_cache)
    modules = [
        torch_tensorrt.load(
            Path(folder, name),
            runtime_settings=settings,
            use_python_runtime=runtime == "Python",
        )
        for name in engines
    ]
    x = torch.ones(1, 3, 64, 64, device="cuda") if on_gpu else torch.ones(4)
    start = time.monotonic()
    for module in modules:
        module.setup_engine()
    seconds = time.monotonic() - start
    print("ready", flush=True)
    sys.stdin.readline()

    start = time.monotonic()
    for module in modules:
        module(x)
    if device is None:
        torch.cuda.synchronize()
    seconds += time.monotonic() - start
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
    return modules


class Stage:
    """Starts and ends processes, and shows a table of them meanwhile.

    Args:
        noun: What a process stands for.
        folder: Where the engines are.
    """

    def __init__(self, noun: str, folder: Path, on_gpu: bool) -> None:
        self._noun = noun
        self._folder = folder
        self._on_gpu = on_gpu
        self._live = Live(auto_refresh=False)
        self.starts: list[Start] = []

    def __enter__(self) -> Stage:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def start(self, starts: list[Start]) -> None:
        """Starts a process for each, and lets all begin at the same moment. They keep running."""
        self.starts += starts
        for start in starts:
            self._launch(start)
        for start in starts:
            line = _output_of(start).readline()
            self._enter(start, "ready" if line == "ready\n" else "failed")
        self._exit_if_failed()
        followers = [threading.Thread(target=_follow, args=(s,)) for s in starts]
        for start, follower in zip(starts, followers, strict=True):
            start.state = "runs"
            print(file=_input_of(start), flush=True)
            follower.start()
        while any(follower.is_alive() for follower in followers):
            self._show()
            time.sleep(0.05)
        self._show()
        self._exit_if_failed()

    def end(self, starts: list[Start]) -> None:
        """Lets processes end normally, all at the same moment."""
        for start in starts:
            _input_of(start).close()
        for start in starts:
            status = start.popen.wait()
            self._enter(start, "failed" if status else "ended")
        self._exit_if_failed()

    def kill(self, start: Start) -> None:
        start.popen.kill()
        start.popen.wait()
        self._enter(start, "killed")

    def _launch(self, start: Start) -> None:
        arguments = (
            *(str(self._folder), start.engines, start.runtime),
            *(start.runtime_cache, self._on_gpu),
        )
        start.popen = subprocess.Popen(
            [sys.executable, __file__, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **start.environment},
        )
        threading.Thread(target=self._pass_on, args=(start,), daemon=True).start()

    def _pass_on(self, start: Start) -> None:
        """Prints a process's messages above the table."""
        assert start.popen.stderr is not None
        for line in start.popen.stderr:
            words = f"{self._noun} {start.process}: {line.rstrip()}"
            self._live.console.print(
                words, markup=False, highlight=False, soft_wrap=True
            )

    def _enter(self, start: Start, state: str) -> None:
        start.state = state
        self._show()

    def _show(self) -> None:
        unit = "bytes" if self._on_gpu else "kernels"
        table = Table(box=box.SIMPLE)
        for column in (self._noun, "runtime", "start", "state"):
            table.add_column(column)
        for column in (f"compiled, {unit}", f"reused, {unit}", "first result, ms"):
            table.add_column(column, justify="right")
        for start in self.starts:
            row = [str(start.process), start.runtime, start.kind, start.state]
            if start.seconds:
                figures = (start.compiled, start.reused, round(start.seconds * 1000))
                row += map(str, figures)
            table.add_row(*row)
        self._live.update(table, refresh=True)

    def _exit_if_failed(self) -> None:
        if any(start.state == "failed" for start in self.starts):
            sys.exit(f"A {self._noun} failed. Its messages are above.")


def _input_of(start: Start) -> IO[str]:
    assert start.popen.stdin is not None
    return start.popen.stdin


def _output_of(start: Start) -> IO[str]:
    assert start.popen.stdout is not None
    return start.popen.stdout


def _follow(start: Start) -> None:
    """Reads the figures of a started process."""
    result = _output_of(start).readline()
    if not result:
        start.state = "failed"
        return
    for key, value in json.loads(result).items():
        setattr(start, key, value)
    start.state = "serves"


def draw(
    panels: dict[str, list[Start]], noun: str, gpu: str | None, path: Path
) -> None:
    """Draws how long cold and warm starts took to their first results.

    Args:
        panels: The starts in each panel, by its heading.
        noun: What a process stands for.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(
        nrows=len(panels),
        squeeze=False,
        sharey=True,
        figsize=(5, 1 + 2.5 * len(panels)),  # readable on a phone
        layout="constrained",
    )
    for axes, (heading, starts) in zip(all_axes[:, 0], panels.items(), strict=True):
        names = {start.process: f"{start.process}: {start.runtime}" for start in starts}
        for offset, (kind, color) in zip((-0.2, 0.2), COLORS.items(), strict=True):
            ours = [start for start in starts if start.kind == kind]
            bars = axes.bar(
                [start.process + offset for start in ours],
                [start.seconds * 1000 for start in ours],
                0.38,
                label=kind,
                color=color,
            )
            axes.bar_label(bars, fmt="%.0f")
        axes.set_xticks(list(names), list(names.values()))
        axes.set_ylabel("time to the first results, ms")
        axes.set_title(heading, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[-1, 0].set_xlabel(f"{noun} and its runtime, on {gpu or SIMULATED}")
    legend = all_axes[0, 0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower right", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def report(figures: dict[str, int], lost: int, unit: str, picture: Path) -> None:
    """Prints the figures. Exits with an error if kernels were lost."""
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, figure in {**figures, f"{unit} lost": lost}.items():
        table.add_row(name, str(figure))
    Console().print(table)
    print(f"Picture: {picture}")
    if lost:
        sys.exit(f"{lost} {unit} were lost")


def median_milliseconds(starts: list[Start]) -> int:
    return round(median(start.seconds for start in starts) * 1000)


if __name__ == "__main__":
    engines_to_the_end = run_engines(*json.loads(sys.argv[1]))
