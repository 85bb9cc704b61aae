"""Whether a runtime cache may be serialized while contexts compile into it, as checkpoints do."""

from __future__ import annotations

from collections.abc import Iterator

from tools.gpu.questions import engines
from tools.gpu.questions.engines import RUNTIMES, SharedStart
from tools.gpu.questions.laboratory import CACHE, Laboratory, answered
from tools.gpu.report import Row, checked, guarded


def concurrent_serialization(laboratory: Laboratory, rounds: int = 3) -> Iterator[Row]:
    """May a cache be serialized while contexts compile into it?"""
    for runtime in RUNTIMES:
        question = (
            f"may a cache be serialized while contexts compile into it ({runtime})"
        )
        yield from guarded(CACHE, question, _ask(laboratory, runtime, rounds, question))


def _ask(
    laboratory: Laboratory, runtime: str, rounds: int, question: str
) -> Iterator[Row]:
    sizes = [len(_start(laboratory, runtime).final) for _ in range(rounds)]
    harm = ""
    together: list[SharedStart] = []
    try:
        for _ in range(rounds):
            together.append(_start(laboratory, runtime, meanwhile=True))
            _check(laboratory, runtime, together[-1], sizes)
    except Exception as error:
        harm = str(error)
    taken = sum(start.taken for start in together)
    figure = f"{taken} different ones; {min(sizes)} to {max(sizes)} B without"
    if harm or any(start.partial for start in together):
        answer = f"no: {harm}" if harm else "yes"
        yield answered(question, answer, not harm, figure)
    else:
        answer = "can't be told: no serialization had some of the kernels"
        yield checked(CACHE, question, False, answer, figure)


def _start(
    laboratory: Laboratory, runtime: str, blob: bytes = b"", meanwhile: bool = False
) -> SharedStart:
    with laboratory.worker() as worker:
        return worker(engines.start_all, runtime, blob, meanwhile)


def _check(
    laboratory: Laboratory, runtime: str, start: SharedStart, sizes: list[int]
) -> None:
    """Raises RuntimeError if the serializations did harm to that start.

    Args:
        sizes: Of the caches of starts without serializations.
    """
    if start.rejected:
        raise RuntimeError(f"{start.rejected} of {start.taken} of them are rejected")
    if not min(sizes) <= len(start.final) <= max(sizes):
        raise RuntimeError(f"the cache has {len(start.final)} B in the end")
    warm = _start(laboratory, runtime, start.final)
    if len(warm.final) != len(start.final):
        raise RuntimeError("a start on the cache compiles kernels")
    if start.partial:
        _start(laboratory, runtime, start.partial)
