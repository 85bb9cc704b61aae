"""What a damaged or foreign cache file does to an engine that is started on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product

from tools.gpu.plans import FIRST
from tools.gpu.questions import engines
from tools.gpu.questions.engines import RUNTIMES
from tools.gpu.questions.laboratory import CACHE, Laboratory, Worker, answered
from tools.gpu.report import Row, Status

# The outcomes of a start.
REJECTED = "rejected with a warning"
ACCEPTED = "accepted, right result"
UNUSED = "accepted without a warning, but compiled anew"

_HEADER = 256  # bytes: where a format has its version and its device


def bad_blobs(
    laboratory: Laboratory, flips: int = 32, timeout: float = 20
) -> Iterator[Row]:
    """What does each kind of unusable cache file do?

    The first start that crashes, hangs or raises an error is the answer for its kind of file.

    Args:
        flips: How many files have a flipped bit in the header, and after it.
        timeout: Seconds after which a start counts as hanging.
    """
    good = laboratory.raw_run(FIRST).after
    sizes = (1, 7, 64, len(good) // 2, len(good) - 8, len(good) - 1)
    kinds = {
        "of another version or device": {
            str(path): path.read_bytes() for path in laboratory.foreign_caches
        },
        "cut off": {f"to {size} B": good[:size] for size in sizes},
        f"with a flipped bit in its first {_HEADER} bytes": _flipped(
            good, range(_HEADER), flips
        ),
        "with a flipped bit after those": _flipped(
            good, range(_HEADER, len(good)), flips
        ),
        "of no cache": {"zeros": bytes(len(good)), "text": b"no cache at all\n"},
    }
    for runtime, (kind, blobs) in product(RUNTIMES, kinds.items()):
        question = f"what does a cache file {kind} do ({runtime})"
        if not blobs:
            answer = "none was given (--foreign-cache FILE)"
            yield Row(CACHE, question, Status.SKIPPED, answer)
            continue
        outcomes: Counter[str] = Counter()
        harm = []
        with laboratory.worker() as worker:
            for name, blob in blobs.items():
                try:
                    outcome = _outcome(laboratory, worker, runtime, blob, timeout)
                except Exception as error:
                    harm = [f"{name}: {error}"]
                    break
                outcomes[outcome] += 1
        answers = [f"{number} {outcome}" for outcome, number in outcomes.items()]
        figure = f"{len(blobs)} files, the good one has {len(good)} B"
        yield answered(question, ", ".join(answers + harm), not harm, figure)


def _flipped(good: bytes, places: range, most: int) -> dict[str, bytes]:
    """Returns at most `most` blobs, each with a flipped bit in another place."""
    blobs = {}
    for place in places[:: max(1, len(places) // most)][:most]:
        blob = bytearray(good)
        blob[place] ^= 1 << (place % 8)
        blobs[f"byte {place}"] = bytes(blob)
    return blobs


def _outcome(
    laboratory: Laboratory, worker: Worker, runtime: str, blob: bytes, timeout: float
) -> str:
    path = laboratory.new_path()
    path.write_bytes(blob)
    start = worker(engines.start, runtime, FIRST, path, timeout=timeout)
    worker(engines.end, timeout=timeout)
    if start.statistics.rejections:
        return REJECTED
    return ACCEPTED if start.compiled_nothing else UNUSED
