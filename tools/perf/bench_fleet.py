"""Measures the cost of a runtime cache on an object store, with real servers on loopback.

- Pull: an object goes to an empty local tier and is synced there. One baseline only gets the bytes
  with the object store's library. The other also writes and syncs a file. Connections exist before
  the clock starts. A figure is the lower quartile of turns.
- Start: the time from when imports and plan are ready to an engine's first result, in its own
  process on the simulated device. The delay by a store is how much longer a start takes than one in
  the same turn with a cache in an empty local directory. The longest delay of all turns counts. Its
  baseline is the longest delay that is promised, which is longer for a slow store.

The servers are moto and, if it can be installed, versitygw. Starts are measured with moto.

bazel run -c opt //tools/perf:bench_fleet [-- --json FILE] [--plot FILE] [--dir DIR]
    [--mebibytes N] [--turns N] [--starts N]
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

from tests.util.servers.object_servers import (
    FaultyProxy,
    MotoServer,
    VersityServer,
    environment_of_client,
    versity_program,
)
from tests.util.simulation.simulated_device import KIND, installed_device, relu_plan
from tools.perf.engines import USES_PYTHON_RUNTIME, in_own_process, start_engine
from tools.perf.report import Row, argument_parser, at_least, report
from torchtrt_cache.store_process import StoreProcess
from torchtrt_cache.transfer import Outcome, Transfers

MEBIBYTE = 1024 * 1024
BUCKET = "bench"
OBJECT = KIND.file_name()
URL = f"s3://{BUCKET}/kernels/"
FEW, MANY = 4, 2048  # kernels per engine
KERNEL_SIZE = 64 * 1024
LONGEST_DELAY = 2.0  # seconds
LONGEST_SLOW_DELAY = 15.0  # seconds, if bytes arrive slowly
PULL_LIMIT = 1.15

Server = MotoServer | VersityServer

FAULTS: dict[str, Callable[[FaultyProxy], None]] = {
    "refuses": lambda proxy: proxy.refuse(),
    "hangs": lambda proxy: proxy.hang(),
    "replies 500": lambda proxy: proxy.reject(500, "InternalError"),
    "replies 403": lambda proxy: proxy.reject(403, "AccessDenied"),
    "has no such bucket": lambda proxy: proxy.reject(404, "NoSuchBucket"),
    "truncates": lambda proxy: proxy.truncate(),
    "is 100 times slower": lambda proxy: proxy.slow_down(100),
}


def seconds_of(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - begin
    del result  # frees its memory only after the clock was read
    return seconds


def make_versity(directory: Path) -> VersityServer | None:
    program = versity_program()
    return None if program is None else VersityServer(program, directory)


SERVERS: dict[str, Callable[[Path], Server | None]] = {
    "moto": lambda directory: MotoServer(),
    "versitygw": make_versity,
}


def pull_rows(
    name: str,
    make_server: Callable[[Path], Server | None],
    directory: Path,
    mebibytes: int,
    turns: int,
) -> list[Row]:
    """Returns no rows for a server that can't be installed."""
    buckets, tier = directory / "buckets", directory / "tier"
    buckets.mkdir()
    tier.mkdir()
    server = make_server(buckets)
    if server is None:
        return []
    with server:
        server.create_bucket(BUCKET)
        times = pull_times(server.port, tier, mebibytes, turns)
    got, written, pulled = (quantiles(its, n=4)[0] for its in zip(*times, strict=True))
    what = f"{name}, {mebibytes} MiB"
    return [
        Row(what, "pull", "get", "ms", got * 1e3, pulled * 1e3, PULL_LIMIT),
        Row(what, "pull", "get, write, sync", "ms", written * 1e3, pulled * 1e3),
    ]


def pull_times(
    port: int, directory: Path, mebibytes: int, turns: int
) -> list[list[float]]:
    """Returns, per turn, the seconds of a get, of one that also writes a file, and of a pull."""
    os.environ.update(environment_of_client(port))
    store = StoreProcess(URL)
    store.replace(OBJECT, memoryview(os.urandom(mebibytes * MEBIBYTE)), None)
    # Imported here, because the library hangs in a child of a process that has used it.
    import obstore

    bare = obstore.store.from_url(URL, client_options={"allow_http": True})
    obstore.head(bare, OBJECT)
    file = directory / OBJECT

    def get() -> obstore.Bytes:
        return obstore.get(bare, OBJECT).bytes()

    def get_and_write() -> None:
        with file.open("wb") as opened:
            opened.write(memoryview(get()))
            os.fsync(opened.fileno())

    def pull() -> None:
        transfers = Transfers(store, str(directory), math.inf)
        outcome = transfers.pull(OBJECT, None).outcome
        if outcome is not Outcome.TRANSFERRED:
            raise RuntimeError(f"The pull found the object {outcome.value}")

    times = []
    for _ in range(turns):
        turn: list[float] = []
        times.append(turn)
        for function in (get, get_and_write, pull):
            for there in directory.iterdir():
                there.unlink()
            os.sync()
            turn.append(seconds_of(function))
    store.close()
    return times


def start(uses_python: bool, kernels: int, place: str, port: int, home: Path) -> float:
    """Returns seconds. If `place` is a directory, saves there what is compiled."""
    os.environ.update(environment_of_client(port))
    os.environ["XDG_CACHE_HOME"] = str(home)
    with installed_device() as device:
        device.set_environment(gpu=KIND.gpu, os_family="linux")
        plan = relu_plan(f"{kernels}_", kernels, KERNEL_SIZE)
        begin = time.perf_counter()
        module = start_engine(plan, place, uses_python)
        seconds = time.perf_counter() - begin
        compiled = device.counters()["compilations"]
        if place == URL and compiled:
            raise RuntimeError(f"{compiled} kernels were compiled, expected 0")
        del module
        return seconds


class Starts:
    """Runs each start on a new machine.

    Args:
        port: The store's port.
        directory: Where the machines have their directories.
    """

    def __init__(self, port: int, directory: Path) -> None:
        self._port = port
        self._directory = directory

    def __call__(self, uses_python: bool, kernels: int, place: str = "") -> float:
        """Returns the seconds of a start with a cache at `place`, or in an empty directory."""
        home = Path(tempfile.mkdtemp(dir=self._directory))
        return in_own_process(
            start, uses_python, kernels, place or f"{home}/", self._port, home
        )


def start_rows(directory: Path, turns: int) -> list[Row]:
    rows = []
    with MotoServer() as server, FaultyProxy(server.port) as proxy:
        server.create_bucket(BUCKET)
        starts = Starts(proxy.port, directory)
        files = directory / "files"
        files.mkdir()
        starts(False, MANY, f"{files}/")
        os.environ.update(environment_of_client(server.port))
        store = StoreProcess(URL)
        store.replace(OBJECT, memoryview((files / OBJECT).read_bytes()), None)
        store.close()
        for runtime, uses_python in USES_PYTHON_RUNTIME.items():
            proxy.heal()
            local = median(starts(uses_python, MANY, f"{files}/") for _ in range(turns))
            remote = median(starts(uses_python, MANY, URL) for _ in range(turns))
            size = MANY * KERNEL_SIZE // MEBIBYTE
            what = f"{runtime}, start with a cache of {size} MiB"
            rows.append(
                Row(what, "object store", "local file", "ms", local * 1e3, remote * 1e3)
            )
            for fault, fail in FAULTS.items():
                fail(proxy)
                is_slow = "slower" in fault
                limit = LONGEST_SLOW_DELAY if is_slow else LONGEST_DELAY
                # Nothing is uploaded, so that each machine finds what the previous one found.
                delay = max(
                    starts(uses_python, FEW, f"{URL}?mode=read")
                    - starts(uses_python, FEW)
                    for _ in range(turns)
                )
                what = f"{runtime}, delay by a {'slow' if is_slow else 'failing'} store"
                rows.append(
                    Row(what, fault, "promise", "ms", limit * 1e3, delay * 1e3, 1.0)
                )
    return rows


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--mebibytes", type=at_least(1), default=256, metavar="N")
    parser.add_argument("--turns", type=at_least(2), default=9, metavar="N")
    parser.add_argument("--starts", type=at_least(1), default=3, metavar="N")
    arguments = parser.parse_args()
    os.environ.update(FAKE_CUDA_GPU=KIND.gpu, FAKE_CUDA_DRIVER="13000")
    ctypes.CDLL(os.environ["FAKE_CUDA_DRIVER_LIBRARY"])  # dlopen() finds it by name now
    logging.getLogger("torch_tensorrt").setLevel(logging.ERROR)  # faults are expected
    rows = []
    for name, make in SERVERS.items():
        with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
            rows += in_own_process(
                pull_rows,
                name,
                make,
                Path(directory),
                arguments.mebibytes,
                arguments.turns,
            )
    with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
        rows += start_rows(Path(directory), arguments.starts)
    report("Cache on an object store", rows, arguments)


if __name__ == "__main__":
    main()
