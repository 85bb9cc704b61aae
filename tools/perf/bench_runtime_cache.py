"""Compares the runtime cache's file with bare system calls, and shared starts with others.

Load and save read and replace a file of 64 MiB. Their memory is what a process needs at most beyond
the bytes that it has already. bench_shared_starts.h describes the processes that share a file.

bazel run -c opt //tools/perf:bench_runtime_cache [-- --json FILE] [--plot FILE] [--dir DIR]
"""

import tempfile
from statistics import median

from tools.perf.report import Row, argument_parser, measured_by, report

MEBIBYTES = 64
SPEED = 0.85  # times that of the bare system calls


def table(of: dict[str, float]) -> list[Row]:
    load, save = f"load of {MEBIBYTES} MiB", f"save of {MEBIBYTES} MiB"
    load_memory, save_memory = f"memory of a {load}", f"memory of a {save}"
    first, saves = "first result of a process", "32 processes save"
    alike = "32 processes save the same"
    ours, bare, content = "cache file", "bare system calls", "the bytes"
    warm, saved, same = of["warm_start"], of["saves_at_once"], of["same_saves_at_once"]
    return [
        Row(load, ours, bare, "ms", of["plain_load"], of["load"], 1 / SPEED),
        Row(load_memory, ours, content, "MiB", MEBIBYTES, of["memory_of_load"], 1.1),
        Row(save, ours, bare, "ms", of["plain_save"], of["save"], 1 / SPEED),
        Row(save_memory, ours, content, "MiB", MEBIBYTES, of["memory_of_save"], 0.1),
        Row(first, "warm", "bytes in memory", "ms", of["start_from_memory"], warm, 1.1),
        Row(first, "warm", "cold", "ms", of["cold_start"], warm, 1),
        Row(saves, "at once", "writes in turn", "ms", of["writes_in_turn"], saved, 3),
        Row(saves, "at once", "saves in turn", "ms", of["saves_in_turn"], saved, 3),
        Row(
            alike,
            "at once",
            "1 write, 32 reads",
            "ms",
            of["write_and_reads"],
            same,
            1.5,
        ),
    ]


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
        samples = measured_by("RUNTIME_CACHE_BENCH", directory)
    medians = {name: median(its) for name, its in samples.items()}
    report("Runtime cache", table(medians), arguments)


if __name__ == "__main__":
    main()
