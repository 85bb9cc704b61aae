"""Compares loading an engine file with a plain read of it and the SHA-256 of what was read.

Both are measured in turns in this run, after a read that fills the page cache. A figure is the
lower quartile of the turns. torch.load takes about 0.3 ms at any size, which matters up to a few
MiB.

bazel run -c opt //tools/perf:bench_engine_file [-- --json FILE] [--plot FILE] [--dir DIR]
    [--turns N]
"""

import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles

import torch

from tools.perf.report import Row, argument_parser, at_least, report
from torch_tensorrt.runtime._engine.engine_file import (
    EngineFile,
    load_engine_file,
    save_engine_file,
)

MEBIBYTE = 1024 * 1024
SIZES = (1, 4, 16, 64, 256, 512)  # MiB of the plan
LIMIT = 1.5


def read_and_hash(path: Path) -> bytes:
    content = path.read_bytes()
    hashlib.sha256(content).digest()
    return content


def seconds_of(function: Callable[[Path], object], path: Path) -> float:
    start = time.perf_counter()
    result = function(path)
    seconds = time.perf_counter() - start
    del result  # frees its memory only after the clock was read
    return seconds


def measure(path: Path, mebibytes: int, turns: int) -> Row:
    plan = torch.randint(0, 256, (mebibytes * MEBIBYTE,), dtype=torch.uint8)
    save_engine_file(path, EngineFile(plan, ["x"], ["y"], "Net", "lazy", "disabled"))
    for function in (read_and_hash, load_engine_file):
        function(path)
    pairs = [
        (seconds_of(read_and_hash, path), seconds_of(load_engine_file, path))
        for _ in range(turns)
    ]
    plain, load = (quantiles(times, n=4)[0] for times in zip(*pairs, strict=True))
    what = f"load {mebibytes} MiB"
    return Row(
        what, "engine file", "read and SHA-256", "ms", plain * 1e3, load * 1e3, LIMIT
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--turns", type=at_least(2), default=41, metavar="N")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
        path = Path(directory) / "net.engine"
        rows = [measure(path, size, arguments.turns) for size in SIZES]
    report("Engine file", rows, arguments)


if __name__ == "__main__":
    main()
