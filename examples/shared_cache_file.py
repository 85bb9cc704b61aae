"""Four processes share one cache file: two by the C++ runtime, two by plain Python.

The file holds an engine plan, built by TensorRT-RTX on the CPU, and after it one line for every
turn. In its turn a process reads the file, checks it, and adds its line. Between turns it reads.
The C++ processes use `torch.classes.tensorrt.RuntimeCacheHandle`, which takes the lock of the file
by itself; the Python ones use `filelock` on the same lock, `<cache>.lock`. Nobody needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

ROUNDS = 25


class CppCache:
    """The cache file through the C++ runtime."""

    def __init__(self, path: Path) -> None:
        import torch

        import torch_tensorrt  # noqa: F401, registers the class

        self._handle = torch.classes.tensorrt.RuntimeCacheHandle(str(path))

    def read(self) -> bytes:
        self._handle.load()
        return bytes(self._handle.serialize().numpy())

    def write(self, data: bytes) -> None:
        import torch

        self._handle.deserialize(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        self._handle.save()


class PythonCache:
    """The cache file by its contract: under `<path>.lock`, replaced by a rename."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        self._path = path
        self._lock = FileLock(f"{path}.lock", timeout=10)

    def read(self) -> bytes:
        with self._lock:
            return self._path.read_bytes()

    def write(self, data: bytes) -> None:
        with self._lock:
            temporary = self._path.with_name(f"{self._path.name}.new-by-{os.getpid()}")
            temporary.write_bytes(data)
            temporary.replace(self._path)


def build_plan() -> bytes:
    """An engine of one ReLU for compute capability 8.0, built ahead of time."""
    import tensorrt_rtx as trt

    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    x = network.add_input("x", trt.float32, (1, 8))
    network.mark_output(
        network.add_activation(x, trt.ActivationType.RELU).get_output(0)
    )
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM80, 0)
    return bytes(builder.build_serialized_network(network, config))


def check_whole(data: bytes, plan: bytes) -> list[str]:
    """The lines after the plan.

    Raises:
        SystemExit: the plan is not there as it was, or the last line is not complete.
    """
    lines = data[len(plan) :]
    if data[: len(plan)] != plan or (lines and not lines.endswith(b"\n")):
        sys.exit(f"torn: {len(data)} bytes that are not the plan and whole lines")
    return lines.decode().splitlines()


def work(runtime: str, name: str, folder: Path) -> None:
    """One process: takes its turns and prints a JSON line for each thing it did."""
    from filelock import FileLock

    plan = (folder / "plan").read_bytes()
    path = folder / "cache.bin"
    cache = CppCache(path) if runtime == "C++" else PythonCache(path)
    # The lock of the cache file covers one read or one write. Adding to what was read is both.
    turn = FileLock(folder / "turn.lock")

    @contextmanager
    def timed(action: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        print(
            json.dumps(
                {
                    "name": name,
                    "runtime": runtime,
                    "action": action,
                    "start": start,
                    "end": time.monotonic(),
                }
            )
        )

    cache.read()
    print("ready", flush=True)
    sys.stdin.readline()  # the others are ready too
    for number in range(ROUNDS):
        with timed("read"):
            check_whole(cache.read(), plan)
        with turn.acquire(poll_interval=0.001), timed("turn"):
            data = cache.read()
            check_whole(data, plan)
            cache.write(data + f"{name} {number}\n".encode())


def show(events: list[dict[str, Any]]) -> None:
    """Prints who had the first turns, and when, in milliseconds since the first."""
    turns = sorted(
        (event for event in events if event["action"] == "turn"),
        key=lambda event: event["start"],
    )
    first = turns[0]["start"]
    print("  from ms   to ms   who")
    for event in turns[:12]:
        start, end = (1000 * (event[key] - first) for key in ("start", "end"))
        print(f"  {start:7.1f} {end:7.1f}   {event['name']} ({event['runtime']})")
    print(
        f"  ... {len(turns)} turns in all, {len(events) - len(turns)} reads beside them"
    )
    overlaps = sum(after["start"] < before["end"] for before, after in pairwise(turns))
    print(f"turns that overlapped: {overlaps}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", nargs=3, metavar=("RUNTIME", "NAME", "FOLDER"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.work:
        runtime, name, folder = arguments.work
        work(runtime, name, Path(folder))
        return

    from tools.wheel.fresh_environment import make_environment

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel = Path(os.environ["TORCHTRT_WHEEL"])
        print(f"installing {wheel.name} in a fresh environment", flush=True)
        python = make_environment(folder / "environment", wheel)

        plan = build_plan()
        (folder / "plan").write_bytes(plan)
        (folder / "cache.bin").write_bytes(plan)
        print(
            f"the cache file starts with an engine plan of {len(plan)} bytes",
            flush=True,
        )

        workers = [
            ("C++", "cpp-1"),
            ("C++", "cpp-2"),
            ("Python", "python-1"),
            ("Python", "python-2"),
        ]
        processes = [
            subprocess.Popen(
                [python, __file__, "--work", runtime, name, str(folder)],
                env={
                    key: value
                    for key, value in os.environ.items()
                    if key != "PYTHONPATH"
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for runtime, name in workers
        ]
        for process in processes:
            assert process.stdout
            if process.stdout.readline() != "ready\n":
                sys.exit(f"a process did not start: {process.args!r}")
        for process in processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            sys.exit("a process failed")
        show([json.loads(line) for output in outputs for line in output.splitlines()])

        lines = check_whole((folder / "cache.bin").read_bytes(), plan)
        expected = {
            f"{name} {number}" for _, name in workers for number in range(ROUNDS)
        }
        print(
            f"lines written: {len(expected)}, lost: {len(expected - set(lines))}, torn reads: 0"
        )
        if sorted(lines) != sorted(expected):
            sys.exit("the file does not hold every line once")


if __name__ == "__main__":
    main()
