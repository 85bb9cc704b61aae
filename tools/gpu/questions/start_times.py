"""How long an engine takes to its first result: cold, and warm from our cache, on both runtimes."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import product
from pathlib import Path
from statistics import median

from tools.gpu.names import SECOND
from tools.gpu.plans.models import CASES
from tools.gpu.questions import engines
from tools.gpu.questions.engines import RUNTIMES, Start
from tools.gpu.questions.laboratory import Laboratory
from tools.gpu.report import Row, Status, in_ms

STEP = "time to first result"
_AHEAD = 8  # processes that have imported all before one of them is timed


def start_times(laboratory: Laboratory, repeats: int = 10) -> list[Row]:
    """A row for each runtime, cold and warm: medians of processes.

    Imports and CUDA's own start are not in it: a process has them behind it when its time begins.
    No two processes are timed at once, and the kinds take turns.
    """
    warm_path = laboratory.new_path("cache")
    with laboratory.worker() as worker:
        worker(engines.start, RUNTIMES[0], SECOND, warm_path)
        worker(engines.save)
    kinds = list(product(RUNTIMES, ["cold", "warm"]))
    starts: dict[tuple[str, str], list[Start]] = {kind: [] for kind in kinds}
    pending = kinds * repeats
    while pending:
        batch, pending = pending[:_AHEAD], pending[_AHEAD:]
        with ExitStack() as stack:
            workers = [stack.enter_context(laboratory.worker()) for _ in batch]
            for worker in workers:
                worker.wait_until_ready()
            for worker, (runtime, temperature) in zip(workers, batch, strict=True):
                path = laboratory.new_path("cache")
                if temperature == "warm":
                    path.write_bytes(warm_path.read_bytes())
                starts[runtime, temperature].append(
                    worker(engines.start, runtime, SECOND, path)
                )
    return _rows(starts, warm_path)


def _rows(starts: dict[tuple[str, str], list[Start]], warm_path: Path) -> list[Row]:
    rows = []
    for (runtime, temperature), of_kind in starts.items():
        seconds = [start.seconds for start in of_kind]
        expected = all(s.compiled_nothing == (temperature == "warm") for s in of_kind)
        right = all(start.error <= CASES[SECOND].bound for start in of_kind)
        compiled = (
            "compiles nothing" if temperature == "warm" else "compiles its kernels"
        )
        rows.append(
            Row(
                STEP,
                f"{temperature} start, {runtime}",
                Status.PASSED if expected and right else Status.FAILED,
                (
                    f"{in_ms(median(seconds))}, {compiled}"
                    if expected
                    else f"not every start {compiled}"
                ),
                f"{in_ms(min(seconds))} to {in_ms(max(seconds))}; the inference after it "
                f"{in_ms(median(s.next_seconds for s in of_kind))}",
                f"{SECOND}, median of {len(seconds)} processes, from the plan's bytes in memory to "
                "the result on the host"
                + (
                    f"; cache file of {warm_path.stat().st_size} B"
                    * (temperature == "warm")
                ),
                {"seconds": seconds, "next": [s.next_seconds for s in of_kind]},
            )
        )
    return rows
