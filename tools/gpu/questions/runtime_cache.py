"""What TensorRT-RTX's documentation leaves open about its runtime cache, asked of a device.

Each question is a function that returns rows; their status compares the answer with what this
project assumes, which docs/gpu-results.md lists. An engine's kernels are known by what they add to
a cache: TensorRT-RTX puts each kernel that it compiles into the cache in use, so a cache that an
inference does not change in size had all of the kernels.
"""

from __future__ import annotations

import re

from tools.gpu.names import CACHE_STEP, DYNAMIC, FIRST, OWN_CACHE, SECOND
from tools.gpu.plans.models import CASES
from tools.gpu.questions import engines
from tools.gpu.questions.engines import RUNTIMES
from tools.gpu.questions.laboratory import Laboratory, Question, row
from tools.gpu.questions.workers import WorkerDied, WorkerError
from tools.gpu.report import Row, Status, in_ms


def refusal(laboratory: Laboratory) -> list[Row]:
    """Does TensorRT-RTX take this GPU? A row for each runtime.

    Refused is a plan that TensorRT-RTX gives reasons not to load, on a GPU of a compute capability
    that it does not name; what else breaks off is a failure.
    """
    rows = []
    for runtime in RUNTIMES:
        with laboratory.worker("info") as worker:
            question = f"does the {runtime} runtime run the plans"
            how = "each plan is loaded and run once, without a cache"
            ran: list[str] = []
            for name in laboratory.device.cases():
                known = loads = False
                try:
                    known = worker(laboratory.device.is_known)
                    worker(engines.load, runtime, name)
                    loads = True
                    worker(engines.start, runtime, name, None)
                except (WorkerError, WorkerDied) as error:
                    words = words_of_tensorrt(worker.output())
                    refused = words and not loads and not known
                    status = Status.REFUSED if refused else Status.FAILED
                    answer = f"{name}: {words or error}"
                    details = {"error": str(error), "ran": ran}
                    rows.append(
                        Row(CACHE_STEP, question, status, answer, "", how, details)
                    )
                    break
                ran.append(name)
            else:
                rows.append(row(question, f"all {len(ran)}", True, how=how, ran=ran))
    return rows


def words_of_tensorrt(log: str) -> str:
    """Its errors, as the C++ runtime's log and tensorrt_rtx's own logger have them."""
    found = re.findall(
        r"ERROR.*?TensorRT-RTX: (.*)|\[TRT\] \[E\] (.*)", log, re.MULTILINE
    )
    return "; ".join(dict.fromkeys(a or b for a, b in found))


def own_cache(laboratory: Laboratory) -> list[Row]:
    """What is the cache of this machine, for --foreign-cache of another?"""
    data = laboratory.raw_run(FIRST).after
    (laboratory.folder / OWN_CACHE).write_bytes(data)
    question = "what is the cache of this machine, for --foreign-cache of another"
    return [row(question, OWN_CACHE, True, f"{len(data)} B", f"of {FIRST}")]


def deserialize_adds(laboratory: Laboratory) -> list[Row]:
    """Does deserialize add to a cache with entries, or replace them?"""
    empty = laboratory.raw_run(FIRST)
    first = empty.after
    second = laboratory.raw_run(SECOND).after
    had_first = laboratory.raw_run(FIRST, [first]).compiled_nothing
    shares = laboratory.raw_run(SECOND, [first]).compiled_nothing
    both = laboratory.raw_run(FIRST, [first, second])
    kept = both.compiled_nothing
    added = laboratory.raw_run(SECOND, [first, second]).compiled_nothing
    sizes = {
        "empty": len(empty.before),
        "first": len(first),
        "second": len(second),
        "second after first": len(both.before),
    }
    figure = ", ".join(f"{name} {size} B" for name, size in sizes.items())
    question = "does deserialize add to a cache with entries, or replace them"
    how = (
        f"{FIRST}'s cache, then {SECOND}'s, deserialized into one; then either engine runs on "
        "it, and the cache grows if a kernel was missing"
    )
    if empty.compiled_nothing or not had_first or shares:
        answer = (
            f"can't be told: cold start adds to the cache: {not empty.compiled_nothing}; "
            f"warm start adds nothing: {had_first}; the engines share all kernels: {shares}"
        )
        return [Row(CACHE_STEP, question, Status.FAILED, answer, figure, how)]
    answers = {
        (True, True): "adds",
        (False, True): "replaces",
        (True, False): "keeps the first alone",
        (False, False): "drops both",
    }
    answer = answers[kept, added]
    return [
        row(question, answer, answer == "adds", figure, how, accepted=both.accepted)
    ]


def byte_equality(laboratory: Laboratory) -> list[Row]:
    """Are serializations byte-equal? What of that does RuntimeCacheHandle rely on?"""
    first = laboratory.raw_run(FIRST).after
    second = laboratory.raw_run(SECOND).after
    elsewhere = laboratory.raw_run(FIRST).after
    with laboratory.worker() as worker:
        once, again = worker(engines.raw_serialized, FIRST, [first], 2)
        empties = [
            *worker(engines.raw_serialized, FIRST, [], 2),
            *worker(engines.raw_serialized, SECOND, []),
        ]
        (one_order,) = worker(engines.raw_serialized, FIRST, [first, second])
        (other_order,) = worker(engines.raw_serialized, FIRST, [second, first])
        (twice,) = worker(engines.raw_serialized, FIRST, [first, first])

    def equality(question: str, a: bytes, b: bytes, relied_on: bool) -> Row:
        figure = f"{len(a)} and {len(b)} B"
        answer = "yes" if a == b else f"no, {_difference(a, b)}"
        return row(question, answer, a == b or not relied_on, figure)

    sizes_agree = len(one_order) == len(other_order) and len(twice) == len(first)
    grows = len(one_order) > max(len(first), len(second))
    return [
        equality("are two serializations of one cache byte-equal", once, again, True),
        equality(
            "is a cache that was deserialized byte-equal again", first, once, True
        ),
        equality(
            "is an empty cache byte-equal to another",
            empties[0],
            empties[0] if len(set(empties)) == 1 else empties[-1],
            True,
        ),
        equality(
            "are the caches of one engine in two processes byte-equal",
            first,
            elsewhere,
            False,
        ),
        equality(
            "are two caches merged in either order byte-equal",
            one_order,
            other_order,
            False,
        ),
        row(
            "does the size of merged caches tell what is in them",
            "yes" if sizes_agree and grows else "no",
            sizes_agree and grows,
            f"{len(first)} and {len(second)} B: {len(one_order)} B in one order, "
            f"{len(other_order)} B in the other; the first with itself: {len(twice)} B",
            "a union is larger than either, the same in both orders, and no larger with itself",
        ),
    ]


def _difference(a: bytes, b: bytes) -> str:
    if len(a) != len(b):
        return "of other sizes"
    places = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    return f"{len(places)} bytes differ, the first at {places[0]}"


def size_per_kernel(laboratory: Laboratory) -> list[Row]:
    """How large is a cache per engine, and per kernel that is specialized for a shape?"""
    batches = [2, 3, 5, 7, 9]
    with laboratory.worker() as worker:
        (empty,) = worker(engines.raw_serialized, FIRST, [])
        sizes = {
            name: len(worker(engines.raw_run, name, []).after)
            for name in laboratory.device.cases()
        }
    growths = []
    with laboratory.worker() as worker:  # another, which has no kernels of DYNAMIC
        blob = empty
        for batch in batches:
            run = worker(engines.raw_run, DYNAMIC, [blob], batch)
            growths.append(len(run.after) - len(run.before))
            blob = run.after
    kernels = [growth for growth in growths if growth > 0]
    return [
        row(
            "how large is a cache",
            f"{len(empty)} B without kernels",
            True,
            ", ".join(f"{name} {size} B" for name, size in sizes.items()),
            "serialized after an engine's first inference on it",
            sizes=sizes,
        ),
        row(
            "how large is a cache per kernel",
            (
                f"{sum(kernels) // len(kernels)} B on average for a shape's kernels"
                if kernels
                else "no shape adds to it"
            ),
            True,
            f"{', '.join(map(str, growths))} B",
            f"what {DYNAMIC} adds for batches of {', '.join(map(str, batches))}, kernels being "
            "specialized at once (eager)",
            growths=growths,
        ),
    ]


def signs_of_compilation(laboratory: Laboratory) -> list[Row]:
    """How can it be told that a start compiled nothing: by the cache's size, time or the log?"""
    cold, cold_log = _logged_run(laboratory, [])
    warm, warm_log = _logged_run(laboratory, [cold.after])
    size_tells = len(cold.after) > len(cold.before) and warm.compiled_nothing
    only_cold = sorted(cold_log - warm_log)
    signs = ["the cache's size"] * size_tells
    signs += ["the log"] * bool(only_cold)
    return [
        row(
            "how can it be told that a start compiled nothing",
            " and ".join(signs) or "by time alone",
            size_tells,
            f"cold {in_ms(cold.seconds)}, adds {len(cold.after) - len(cold.before)} B, "
            f"{len(only_cold)} log lines of its own; warm {in_ms(warm.seconds)}, adds "
            f"{len(warm.after) - len(warm.before)} B",
            "an engine's first inference without a cache, and on that cache in another process, "
            "TensorRT-RTX's log being verbose",
            lines_of_cold_start_alone=only_cold[:20],
        )
    ]


def _logged_run(
    laboratory: Laboratory, blobs: list[bytes]
) -> tuple[engines.RawRun, set[str]]:
    """A run of FIRST in a process of its own, and the lines of its log."""
    with laboratory.worker("debug") as worker:
        worker(engines.raw_serialized, FIRST, [])  # loads the engine
        begin = len(worker.output())
        run = worker(engines.raw_run, FIRST, blobs)
        return run, _lines(worker.output()[begin:])


def _lines(log: str) -> set[str]:
    """The distinct lines, less numbers, by which lines of one kind differ."""
    return {re.sub(r"0x[0-9a-fA-F]+|\d+", "#", line) for line in log.splitlines()}


def merge_of_two_processes(laboratory: Laboratory) -> list[Row]:
    """Does a file that two processes saved hold the kernels of both?"""
    rows = []
    for one, two in [("C++", "C++"), ("Python", "Python"), ("C++", "Python")]:
        path = laboratory.new_path("cache")
        with laboratory.worker() as a, laboratory.worker() as b:
            # Both start before there is a file, so neither has the other's kernels.
            cold = [
                a(engines.start, one, FIRST, path),
                b(engines.start, two, SECOND, path),
            ]
            written = [a(engines.save), b(engines.save)]
            log = a.output() + b.output()
        with laboratory.worker() as c:
            warm = [
                c(engines.start, one, FIRST, path),
                c(engines.start, two, SECOND, path),
            ]
        missing = [
            name
            for name, start in zip((FIRST, SECOND), warm, strict=True)
            if not start.compiled_nothing
        ]
        wrong = any(
            not s.error <= CASES[name].bound
            for starts in (cold, warm)
            for name, s in zip((FIRST, SECOND), starts, strict=True)
        )
        answer = f"no, it lacks {', '.join(missing)}'s" if missing else "yes"
        if any(start.compiled_nothing for start in cold):
            answer = "can't be told: a start on no file compiled nothing"
        elif wrong:
            answer += ", but a result is wrong"
        rows.append(
            row(
                f"does a file hold the kernels of both processes ({one} and {two})",
                answer,
                answer == "yes",
                f"saved {written[0]} B, then {written[1]} B; starts "
                f"{', '.join(in_ms(s.seconds) for s in cold)} cold, "
                f"{', '.join(in_ms(s.seconds) for s in warm)} warm",
                "both start on no file and save in turn, each in a new thread; a third starts "
                "both engines on the file, and its cache does not grow",
                log=log,
            )
        )
    return rows


QUESTIONS: list[Question] = [
    own_cache,
    deserialize_adds,
    byte_equality,
    size_per_kernel,
    signs_of_compilation,
    merge_of_two_processes,
]
