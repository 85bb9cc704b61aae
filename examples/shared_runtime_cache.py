"""Processes of both runtimes share one runtime cache: first cold, then warm.

Two processes run their engines on the C++ runtime and two on the Python runtime, all at once and
all on one cache file. Each has one engine that all have and one of its own. At first the file is
missing, so they compile every kernel.

They keep running, as servers do. A fifth process starts 3 s after their first results and finds the
kernels on disk. Then one of the four is killed (SIGKILL), and the others end. Finally the four
start again. If the fifth process or one of these compiles a kernel, that kernel was lost.

The engines run on the GPU. Without a GPU that TensorRT-RTX supports, they run on a simulated
device, whose kernels take a fixed time to compile.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from examples.starts import (
    Stage,
    Start,
    draw,
    make_engines,
    median_milliseconds,
    read_arguments,
    report,
)

RUNTIMES = ("C++", "C++", "Python", "Python")
KILLED = 1  # index of the process that is killed
PAUSE = 3  # seconds from the first results to the start of the fifth process


def main() -> None:
    gpu, picture = read_arguments(__doc__)
    own = [f"engine {i}" for i in range(len(RUNTIMES))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_engines(folder, ["all", *own], gpu is not None)
        file = folder / "runtime_cache.bin"
        cold, warm = (
            [
                Start(i, ["all", own[i]], runtime, kind, str(file))
                for i, runtime in enumerate(RUNTIMES)
            ]
            for kind in ("cold", "warm")
        )
        # It needs the kernels of the process that is killed next, and uses the other runtime.
        late = Start(len(RUNTIMES), ["all", own[KILLED]], "Python", "late", str(file))
        with Stage("process", folder, gpu is not None) as stage:
            stage.start(cold)
            time.sleep(PAUSE)
            stage.start([late])
            stage.end([late])
            stage.kill(cold[KILLED])
            stage.end([start for start in cold if start.state != "killed"])
            stage.start(warm)
            stage.end(warm)
        size = file.stat().st_size

    panels = {"Four processes on one runtime cache": cold + warm}
    draw(panels, "process", gpu, picture)
    unit = "bytes of kernels" if gpu else "kernels"
    cold_time, warm_time = median_milliseconds(cold), median_milliseconds(warm)
    figures = {
        f"{unit} compiled, cold": sum(start.compiled for start in cold),
        f"{unit} reused, warm": sum(start.reused for start in warm),
        "bytes in the cache file": size,
        "median time to the first results, cold, ms": cold_time,
        "median time to the first results, warm, ms": warm_time,
        "saved by a warm start, ms": cold_time - warm_time,
    }
    report(figures, sum(start.compiled for start in (late, *warm)), unit, picture)


if __name__ == "__main__":
    main()
