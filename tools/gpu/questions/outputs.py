"""Whether both runtimes compute what eager torch computes on the same device."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

from tools.gpu.plans import CASES, FIRST
from tools.gpu.questions import engines
from tools.gpu.questions.engines import RUNTIMES
from tools.gpu.questions.laboratory import Laboratory
from tools.gpu.report import Row, Status, checked

STEP = "output equality"


def output_equality(laboratory: Laboratory) -> Iterator[Row]:
    """Yields a row for each plan and runtime, with the worst of its shapes.

    A plan that does not load is refused, with the reasons that TensorRT-RTX gives, if the plans are
    not built for a device like this one. Any other error is a failure.
    """
    for runtime, name in product(RUNTIMES, laboratory.device.cases()):
        case = CASES[name]
        question = f"{name} on the {runtime} runtime"
        batches = ", ".join(map(str, case.batches))
        figure = f"at most {case.bound:.0e}, for batches of {batches}"
        with laboratory.worker() as worker:
            try:
                starts = [
                    worker(engines.start, runtime, name, laboratory.new_path(), batch)
                    for batch in case.batches
                ]
            except Exception as error:
                # The words of both runtimes.
                unloaded = re.search("could not (be started|load a plan)", str(error))
                refused = unloaded and not laboratory.device.is_known()
                status = Status.REFUSED if refused else Status.FAILED
                answer = words_of_tensorrt(worker.output()) or str(error)
                yield Row(STEP, question, status, answer, figure)
            else:
                worst = max(start.error for start in starts)
                answer = f"relative error {worst:.1e}"
                yield checked(STEP, question, worst <= case.bound, answer, figure)


def words_of_tensorrt(log: str) -> str:
    """Returns its errors, from the C++ runtime's log or tensorrt_rtx's own logger."""
    found = re.findall(r"ERROR.*?TensorRT-RTX: (.*)|\[TRT\] \[E\] (.*)", log)
    return "; ".join(dict.fromkeys(a or b for a, b in found))


def graph_capture(laboratory: Laboratory) -> Iterator[Row]:
    """Does a CUDA graph that torch captures compute the same?"""
    for runtime in RUNTIMES:
        question = f"CUDA graph capture of {FIRST} on the {runtime} runtime"
        try:
            with laboratory.worker() as worker:
                error = worker(engines.replay, runtime, FIRST)
        except Exception as failure:
            # The words of both runtimes. An older torch can't.
            declined = "can't be captured in a CUDA graph" in str(failure)
            status = Status.ANSWER if declined else Status.FAILED
            yield Row(STEP, question, status, f"no: {failure}")
        else:
            is_right = error <= CASES[FIRST].bound
            answer = f"relative error {error:.1e}"
            yield checked(STEP, question, is_right, answer)
