"""Machines share kernels through an object store: first cold, then warm.

A server for Amazon S3's protocol runs on this machine. Each process stands for a machine and has a
directory as its disk. Two run their engines on the C++ runtime and two on the Python runtime. Each
has one engine that all have and one of its own.

First all four start at the same moment with an empty bucket, compile every kernel, and end. Then
four new machines start. They get the kernels only from the bucket.

The second part repeats this with faults, in another bucket. Two of the four machines end. The store
stops. One of the other two is killed (SIGKILL). The last one ends and warns that it can't upload.
The store starts again, and so do the machines, with what they have on disk. Finally a fifth machine
starts with nothing on disk and with the engines of all. If a machine compiles a kernel after the
restart, that kernel was lost.

The engines run on the GPU. Without a GPU that TensorRT-RTX supports, they run on a simulated
device, whose kernels take a fixed time to compile.
"""

from __future__ import annotations

import os
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
from tests.util.servers.object_servers import (
    FaultyProxy,
    MotoServer,
    environment_of_client,
)

RUNTIMES = ("C++", "C++", "Python", "Python")
OWN = [f"engine {i}" for i in range(len(RUNTIMES))]
KILLED, CUT_OFF = 1, 3  # the machines that do not end before the store stops
PAUSE = 3  # seconds in which a process saves its kernels to its disk


class Fleet:
    """Machines on one bucket."""

    def __init__(self, folder: Path, bucket: str, port: int, on_gpu: bool) -> None:
        self._folder = folder
        self._bucket = bucket
        self._environment = environment_of_client(port)
        if not on_gpu:
            # This driver only says that the machine's kind is that of the simulated GPU.
            driver = Path(os.environ["FAKE_CUDA_DRIVER_LIBRARY"])
            self._environment["LD_LIBRARY_PATH"] = str(driver.parent)
            self._environment["FAKE_CUDA_GPU"] = "Simulated RTX GPU"
            self._environment["PYTHONWARNINGS"] = "ignore:CUDA initialization"

    def machines(self, kind: str, disk: str) -> list[Start]:
        return [
            self.machine(i, ["all", OWN[i]], runtime, kind, disk)
            for i, runtime in enumerate(RUNTIMES)
        ]

    def machine(
        self, index: int, engines: list[str], runtime: str, kind: str, disk: str
    ) -> Start:
        """Returns a start of a machine. Equal `index` and `disk` mean the same machine."""
        directory = self._folder / f"{self._bucket}-{disk}-{index}"
        environment = {**self._environment, "XDG_CACHE_HOME": str(directory)}
        url = f"s3://{self._bucket}/kernels/"
        return Start(index, engines, runtime, kind, url, environment)


def show_warm_start(stage: Stage, fleet: Fleet, proxy: FaultyProxy) -> None:
    for kind, disk in (("cold", "old"), ("warm", "new")):
        machines = fleet.machines(kind, disk)
        stage.start(machines)
        stage.end(machines)


def show_faults(stage: Stage, fleet: Fleet, proxy: FaultyProxy) -> None:
    cold = fleet.machines("cold", "old")
    stage.start(cold)
    stage.end([start for start in cold if start.process not in (KILLED, CUT_OFF)])
    proxy.refuse()
    time.sleep(PAUSE)
    stage.kill(cold[KILLED])
    stage.end([cold[CUT_OFF]])
    proxy.heal()
    again = fleet.machines("warm", "old")
    stage.start(again)
    stage.end(again)
    fifth = fleet.machine(len(again), ["all", *OWN], "C++", "warm", "new")
    stage.start([fifth])
    stage.end([fifth])


ACTS = {
    "Four machines start with an empty bucket, and four new ones after them": show_warm_start,
    "The same machines twice: one is killed, and the store stops; then a fifth": show_faults,
}


def main() -> None:
    gpu, picture = read_arguments(__doc__)
    on_gpu = gpu is not None
    panels: dict[str, list[Start]] = {}
    puts = 0
    server = MotoServer()
    with server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_engines(folder, ["all", *OWN], on_gpu)
        for i, (heading, act) in enumerate(ACTS.items()):
            print(f"\n{heading}")
            bucket = f"fleet-{i}"
            server.create_bucket(bucket)
            with FaultyProxy(server.port) as proxy:
                fleet = Fleet(folder, bucket, proxy.port, on_gpu)
                with Stage("machine", folder, on_gpu) as stage:
                    act(stage, fleet, proxy)
                puts += proxy.count("PUT")
            panels[heading] = stage.starts

    draw(panels, "machine", gpu, picture)
    unit = "bytes of kernels" if gpu else "kernels"
    starts = [start for starts in panels.values() for start in starts]
    cold, warm = ([s for s in starts if s.kind == kind] for kind in ("cold", "warm"))
    cold_time, warm_time = median_milliseconds(cold), median_milliseconds(warm)
    figures = {
        f"{unit} compiled, cold": sum(start.compiled for start in cold),
        f"{unit} reused, warm": sum(start.reused for start in warm),
        "puts of objects": puts,
        "median time to the first results, cold, ms": cold_time,
        "median time to the first results, warm, ms": warm_time,
        "saved by a warm start, ms": cold_time - warm_time,
    }
    report(figures, sum(start.compiled for start in warm), unit, picture)


if __name__ == "__main__":
    main()
