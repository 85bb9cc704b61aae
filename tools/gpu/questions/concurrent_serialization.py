"""Whether a runtime cache may be serialized while contexts compile into it, as checkpoints do."""

from __future__ import annotations

from tools.gpu.names import CACHE_STEP
from tools.gpu.questions import engines
from tools.gpu.questions.engines import RUNTIMES, SharedStart
from tools.gpu.questions.laboratory import Laboratory, row
from tools.gpu.questions.workers import WorkerDied, WorkerError
from tools.gpu.report import Row, Status


def concurrent_serialization(laboratory: Laboratory, rounds: int = 3) -> list[Row]:
    """May a cache be serialized while contexts compile into it? A row for each runtime."""
    return [_ask(laboratory, runtime, rounds) for runtime in RUNTIMES]


def _ask(laboratory: Laboratory, runtime: str, rounds: int) -> Row:
    question = (
        f"may a cache be serialized while contexts compile into it ({runtime} runtime)"
    )
    how = (
        f"in {rounds} processes each engine starts in a thread of its own, all on one cache, while "
        "another thread serializes that; results, serializations, and starts on them in other "
        "processes are compared to those without"
    )
    alone = [_start(laboratory, runtime) for _ in range(rounds)]
    sizes = [len(start.final) for start in alone]
    figure = f"{min(sizes)} to {max(sizes)} B without"
    if not all(start.is_right for start in alone):
        answer = "can't be told: a result is wrong without it too"
        return Row(CACHE_STEP, question, Status.FAILED, answer, figure, how)
    together: list[SharedStart] = []
    try:
        for _ in range(rounds):
            start = _start(laboratory, runtime, is_serialized_meanwhile=True)
            together.append(start)
            if harm := _harm(laboratory, runtime, start, sizes):
                return row(question, f"no: {harm}", False, figure, how)
    except (WorkerError, WorkerDied) as error:
        return row(question, f"no: {error}", False, figure, how)
    taken = sum(start.taken for start in together)
    figure = f"{taken} different ones were taken meanwhile; {figure}"
    if not any(start.partial for start in together):
        answer = "can't be told: no serialization had some of the kernels"
        return Row(CACHE_STEP, question, Status.FAILED, answer, figure, how)
    return row(question, "yes", True, figure, how)


def _start(
    laboratory: Laboratory,
    runtime: str,
    blob: bytes = b"",
    is_serialized_meanwhile: bool = False,
) -> SharedStart:
    with laboratory.worker() as worker:
        return worker(engines.start_all, runtime, blob, is_serialized_meanwhile)


def _harm(
    laboratory: Laboratory, runtime: str, start: SharedStart, sizes: list[int]
) -> str:
    """What the serializations did to that start; empty if nothing.

    Args:
        sizes: Of the caches of starts without serializations.
    """
    if not start.is_right:
        return "a result is wrong"
    if start.rejected:
        return f"{start.rejected} of {start.taken} serializations are rejected"
    if not min(sizes) <= len(start.final) <= max(sizes):
        return f"the cache has {len(start.final)} B in the end"
    warm = _start(laboratory, runtime, start.final)
    if len(warm.final) != len(start.final) or warm.compilations:
        return "a start on the cache compiles kernels"
    if not warm.is_right:
        return "a result on the cache is wrong"
    if start.partial and not _start(laboratory, runtime, start.partial).is_right:
        return "a result on what was taken meanwhile is wrong"
    return ""
