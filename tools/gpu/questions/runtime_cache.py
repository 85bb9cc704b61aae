"""What TensorRT-RTX's documentation leaves open about its runtime cache, asked of a device.

The status of a row compares the answer with what this project assumes, which docs/gpu-results.md
lists. TensorRT-RTX adds each kernel that it compiles to the cache in use, so a cache whose size an
inference does not change had all of its kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

from tools.gpu.plans import DYNAMIC, FIRST, SECOND
from tools.gpu.questions import engines
from tools.gpu.questions.laboratory import CACHE, Laboratory, answered
from tools.gpu.report import Row, checked, in_ms


def deserialize_adds(laboratory: Laboratory) -> Iterator[Row]:
    """Does deserialize add to a cache with entries, or replace them?

    Two caches are deserialized into one. Then either engine runs on it, in a process of its own.
    This requires that the size of a cache tells whether an inference compiled kernels.
    """
    cold = laboratory.raw_run(FIRST)
    first = cold.after
    second = laboratory.raw_run(SECOND).after
    warm = laboratory.raw_run(FIRST, [first])
    tells = warm.compiled_nothing and not cold.compiled_nothing
    yield answered(
        "does the size of a cache tell that a start compiled nothing",
        "yes" if tells else "no",
        tells,
        f"cold {len(cold.before)} B before and {len(first)} B after, "
        f"warm {len(warm.before)} B before and {len(warm.after)} B after",
    )
    shares = laboratory.raw_run(SECOND, [first]).compiled_nothing
    both = laboratory.raw_run(FIRST, [first, second])
    added = laboratory.raw_run(SECOND, [first, second]).compiled_nothing
    question = "does deserialize add to a cache with entries, or replace them"
    figure = (
        f"first {len(first)} B, second {len(second)} B, second after first "
        f"{len(both.before)} B"
    )
    if not tells or shares:
        answer = f"can't be told; the engines share all kernels: {shares}"
        yield checked(CACHE, question, False, answer, figure)
        return
    answer = {
        (True, True): "adds",
        (False, True): "replaces",
        (True, False): "keeps the first alone",
        (False, False): "drops both",
    }[both.compiled_nothing, added]
    yield answered(question, answer, answer == "adds", figure)


def byte_equality(laboratory: Laboratory) -> Iterator[Row]:
    """Which serializations are byte-equal, and does their size tell what they have?

    Writes `own_cache`.
    """
    first = laboratory.raw_run(FIRST).after
    laboratory.own_cache.write_bytes(first)
    second = laboratory.raw_run(SECOND).after
    with laboratory.worker() as worker:
        once, again = worker(engines.raw_serialized, FIRST, [first], 2)
        (empty,) = worker(engines.raw_serialized, FIRST, [])
        (other_empty,) = worker(engines.raw_serialized, SECOND, [])
        (one_order,) = worker(engines.raw_serialized, FIRST, [first, second])
        (other_order,) = worker(engines.raw_serialized, FIRST, [second, first])
        (twice,) = worker(engines.raw_serialized, FIRST, [first, first])
    for question, a, b, is_relied_on in (
        ("are two serializations of one cache byte-equal", once, again, True),
        ("is a cache that was deserialized byte-equal again", first, once, True),
        ("is an empty cache byte-equal to another engine's", empty, other_empty, True),
        ("are caches merged in either order byte-equal", one_order, other_order, False),
    ):
        figure = f"{len(a)} and {len(b)} B"
        different = sum(x != y for x, y in zip(a, b, strict=False))
        answer = "yes" if a == b else f"no, {different} bytes differ"
        yield answered(question, answer, a == b or not is_relied_on, figure)
    is_union = len(one_order) == len(other_order) > max(len(first), len(second))
    tells = is_union and len(twice) == len(first)
    yield answered(
        "does the size of merged caches tell what is in them",
        "yes" if tells else "no",
        tells,
        f"{len(first)} and {len(second)} B: {len(one_order)} B in one order, {len(other_order)} B "
        f"in the other; the first with itself: {len(twice)} B",
    )


def size_per_kernel(laboratory: Laboratory) -> Iterator[Row]:
    """How large is a cache per engine, and per kernel that is specialized for a shape?"""
    with laboratory.worker() as worker:
        (empty,) = worker(engines.raw_serialized, FIRST, [])
        sizes = [f"empty {len(empty)} B"]
        for name in laboratory.device.cases():
            size = len(worker(engines.raw_run, name, []).after)
            sizes.append(f"{name} {size} B")
    yield answered("how large is a cache", ", ".join(sizes), True)
    growths = []
    with laboratory.worker() as worker:  # another, which has no kernels of DYNAMIC
        blob = empty
        for batch in (2, 3, 5, 7, 9):
            run = worker(engines.raw_run, DYNAMIC, [blob], batch)
            growths.append(f"batch {batch} {len(run.after) - len(run.before)} B")
            blob = run.after
    question = f"how much does {DYNAMIC} add to a cache for a shape"
    yield answered(question, ", ".join(growths), True)


def merge_of_two_processes(laboratory: Laboratory) -> Iterator[Row]:
    """Does a file that two processes saved have the kernels of both?

    Both start without a file and save in turn, each in a new thread. A third starts both engines on
    the file.
    """
    for one, two in [("C++", "C++"), ("Python", "Python"), ("C++", "Python")]:
        starts = (one, FIRST), (two, SECOND)
        path = laboratory.new_path()
        with laboratory.worker() as a, laboratory.worker() as b:
            # Before there is a file, so that neither has the other's kernels.
            cold = [
                worker(engines.start, *start, path)
                for worker, start in zip((a, b), starts, strict=True)
            ]
            a(engines.save)
            b(engines.save)
        with laboratory.worker() as c:
            warm = [c(engines.start, *start, path) for start in starts]
        missing = [
            name
            for (_, name), start in zip(starts, warm, strict=True)
            if not start.compiled_nothing
        ]
        answer = f"no, {', '.join(missing)}'s are missing" if missing else "yes"
        if any(start.compiled_nothing for start in cold):
            answer = "can't be told: a start without a file compiled nothing"
        yield answered(
            f"does a file have the kernels of both processes ({one} and {two})",
            answer,
            answer == "yes",
            f"{', '.join(in_ms(start.seconds) for start in cold)} cold, "
            f"{', '.join(in_ms(start.seconds) for start in warm)} warm",
        )
