"""All questions, in the order in which they are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tools.gpu.questions import runtime_cache
from tools.gpu.questions.bad_blobs import bad_blobs
from tools.gpu.questions.concurrent_serialization import concurrent_serialization
from tools.gpu.questions.laboratory import CACHE, Laboratory
from tools.gpu.questions.outputs import graph_capture, output_equality
from tools.gpu.questions.start_times import start_times
from tools.gpu.report import Row, Status, guarded

# What may hang comes last.
QUESTIONS: list[Callable[[Laboratory], Iterator[Row]]] = [
    runtime_cache.deserialize_adds,
    runtime_cache.byte_equality,
    runtime_cache.size_per_kernel,
    runtime_cache.merge_of_two_processes,
    graph_capture,
    start_times,
    concurrent_serialization,
    bad_blobs,
]


def ask(laboratory: Laboratory) -> Iterator[Row]:
    """Asks whether the outputs are right, and all other questions unless no plan loads."""
    refused = True
    for row in guarded(CACHE, "output_equality", output_equality(laboratory)):
        refused = refused and row.status is Status.REFUSED
        yield row
    if refused:
        yield Row(CACHE, "all others", Status.SKIPPED, "no plan loads")
        return
    for question in QUESTIONS:
        yield from guarded(CACHE, question.__name__, question(laboratory))
