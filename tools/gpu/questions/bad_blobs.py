"""What a damaged or foreign cache file does to an engine that is started on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack

from tools.gpu.names import CACHE_STEP, FIRST
from tools.gpu.plans.models import CASES
from tools.gpu.questions import engines
from tools.gpu.questions.engines import RUNTIMES
from tools.gpu.questions.laboratory import Laboratory, row
from tools.gpu.questions.workers import Worker, WorkerDied, WorkerError, WorkerHung
from tools.gpu.report import Row, Status

# How a start may come out; the first three are what the design promises.
REJECTED = "rejected with a warning"
ACCEPTED = "accepted, right result"
UNUSED = "accepted without a warning, but compiled anew"
WRONG = "WRONG RESULT"
ERROR = "ERROR"
CRASH = "CRASH"
HANG = "HANG"
AS_DESIGNED = frozenset({REJECTED, ACCEPTED, UNUSED})

# After so many starts of a kind that broke off, its others are left out: each costs a new process,
# and one that hangs its time limit besides.
MOST_BROKEN = 3
LEFT_OUT = f"left out after {MOST_BROKEN} that broke off"

_HEADER = 256  # bytes: where a format has its version and its device


def bad_blobs(
    laboratory: Laboratory, flips: int = 32, timeout: float = 20
) -> list[Row]:
    """What does each kind of unusable cache file do, on each runtime?

    Args:
        timeout: Seconds after which a start hangs.
    """
    good = laboratory.raw_run(FIRST).after
    kinds = {
        "of another version or device": laboratory.foreign_caches,
        "cut off": _cut(good),
        f"with a flipped bit in its first {_HEADER} bytes": _flipped(
            good, _spread(0, min(_HEADER, len(good)), flips)
        ),
        "with a flipped bit after those": _flipped(
            good, _spread(_HEADER, len(good), flips)
        ),
        "of no cache": {"zeros": bytes(len(good)), "text": b"no cache at all\n"},
    }
    rows = []
    for runtime in RUNTIMES:
        blobs = {
            (kind, name): kinds[kind][name] for kind in kinds for name in kinds[kind]
        }
        outcomes = dict(_starts(laboratory, runtime, blobs, timeout))
        for kind in kinds:
            of_kind = {name: outcomes[kind, name] for name in kinds[kind]}
            rows.append(_row(kind, runtime, of_kind, len(good)))
    return rows


def _row(kind: str, runtime: str, outcomes: dict[str, str], size: int) -> Row:
    question = f"what does a cache file {kind} do ({runtime})"
    if not outcomes:
        answer = "none was given (--foreign-cache FILE)"
        return Row(CACHE_STEP, question, Status.SKIPPED, answer)
    counts = Counter(outcome.partition(":")[0] for outcome in outcomes.values())
    answer = ", ".join(f"{number} {what}" for what, number in counts.items())
    bad = [
        f"{name}: {outcome}"
        for name, outcome in outcomes.items()
        if outcome not in AS_DESIGNED | {LEFT_OUT}
    ]
    return row(
        question,
        f"{answer} ({bad[0]})" if bad else answer,
        not bad,
        f"{len(outcomes)} files, the good one has {size} B",
        f"{FIRST} is started on each in another process",
        outcomes=outcomes,
    )


def _cut(good: bytes) -> dict[str, bytes]:
    sizes = {1, 7, 64, len(good) // 2, len(good) - 8, len(good) - 1}
    return {f"to {size} B": good[:size] for size in sorted(sizes) if size > 0}


def _spread(begin: int, end: int, number: int) -> list[int]:
    """At most `number` places, evenly from `begin` to before `end`."""
    step = max(1, (end - begin) // number)
    return list(range(begin, end, step))[:number]


def _flipped(good: bytes, places: Iterable[int]) -> dict[str, bytes]:
    blobs = {}
    for place in places:
        blob = bytearray(good)
        blob[place] ^= 1 << (place % 8)
        blobs[f"byte {place}"] = bytes(blob)
    return blobs


def _starts(
    laboratory: Laboratory,
    runtime: str,
    blobs: dict[tuple[str, str], bytes],
    timeout: float,
) -> Iterable[tuple[tuple[str, str], str]]:
    """How a start on each came out, in one process for as long as that is sound."""
    with ExitStack() as stack:
        worker = None
        broken: Counter[str] = Counter()
        for (kind, name), blob in blobs.items():
            if broken[kind] == MOST_BROKEN:
                yield (kind, name), LEFT_OUT
                continue
            if worker is None:
                worker = stack.enter_context(laboratory.worker())
                worker.wait_until_ready()
            outcome = _outcome(laboratory, worker, runtime, blob, timeout)
            if outcome.startswith((CRASH, ERROR, HANG)):
                worker = None  # after an error of CUDA nothing works in a process
                broken[kind] += 1
            yield (kind, name), outcome


def _outcome(
    laboratory: Laboratory, worker: Worker, runtime: str, blob: bytes, timeout: float
) -> str:
    path = laboratory.new_path("cache")
    path.write_bytes(blob)
    begin = len(worker.output())
    try:
        start = worker(engines.start, runtime, FIRST, path, timeout=timeout)
        worker(engines.end, timeout=timeout)
    except WorkerHung as error:
        return f"{HANG}: {error}"
    except WorkerDied as error:
        return f"{CRASH}: {error}"
    except WorkerError as error:
        return f"{ERROR}: {error}"
    finally:
        path.unlink()
    if not start.error <= CASES[FIRST].bound:
        return f"{WRONG}: relative error {start.error:.2g}"
    if "rejected the" in worker.output()[begin:]:
        return REJECTED
    return ACCEPTED if start.compiled_nothing else UNUSED
