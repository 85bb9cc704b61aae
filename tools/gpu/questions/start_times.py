"""How long an engine takes to its first result: cold, and warm from our cache, on both runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from statistics import median

from tools.gpu.plans import SECOND
from tools.gpu.questions import engines
from tools.gpu.questions.engines import RUNTIMES, Start
from tools.gpu.questions.laboratory import Laboratory
from tools.gpu.report import Row, checked, in_ms


def start_times(laboratory: Laboratory, repeats: int = 10) -> Iterator[Row]:
    """How long does an engine take to its first result, cold and warm?"""
    warm = laboratory.new_path()
    with laboratory.worker() as worker:
        worker(engines.start, RUNTIMES[0], SECOND, warm)
        worker(engines.save)
    kinds = list(product(RUNTIMES, ["cold", "warm"]))
    starts: dict[tuple[str, str], list[Start]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        with ExitStack() as stack:
            workers = [stack.enter_context(laboratory.worker()) for _ in kinds]
            # No two processes are timed at once, nor while another imports torch.
            for worker in workers:
                worker(int)
            for worker, kind in zip(workers, kinds, strict=True):
                path = laboratory.new_path()
                if "warm" in kind:
                    path.write_bytes(warm.read_bytes())
                starts[kind].append(worker(engines.start, kind[0], SECOND, path))
    for (runtime, temperature), of_kind in starts.items():
        is_warm = temperature == "warm"
        seconds = [start.seconds for start in of_kind]
        compiled = "compiles nothing" if is_warm else "compiles its kernels"
        answer = f"{in_ms(median(seconds))}, {compiled}"
        is_as_expected = all(start.compiled_nothing == is_warm for start in of_kind)
        yield checked(
            "time to first result",
            f"{temperature} start of {SECOND}, {runtime}",
            is_as_expected,
            answer if is_as_expected else f"not every start {compiled}",
            f"median of {repeats}, {in_ms(min(seconds))} to {in_ms(max(seconds))}",
        )
