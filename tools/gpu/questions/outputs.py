"""Whether both runtimes compute what eager torch computes on the same device."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

from tools.gpu.plans import CASES, FIRST
from tools.gpu.questions import engines
from tools.gpu.questions.devices import GpuDevice
from tools.gpu.questions.engines import RUNTIMES
from tools.gpu.questions.laboratory import Laboratory
from tools.gpu.report import Row, Status, checked

STEP = "output equality"


def output_equality(laboratory: Laboratory) -> Iterator[Row]:
    """A row for each plan and runtime, with the worst of its shapes.

    A plan is refused if TensorRT-RTX says why it does not load, on a GPU of a compute capability
    that it does not name. Any other error is a failure.
    """
    for runtime, name in product(RUNTIMES, laboratory.device.cases()):
        case = CASES[name]
        question = f"{name} on the {runtime} runtime"
        figure = f"at most {case.bound:.0e}, for batches of "
        figure += ", ".join(map(str, case.batches))
        loads = False
        with laboratory.worker() as worker:
            try:
                worker(engines.load, runtime, name)
                loads = True
                errors = [
                    worker(
                        engines.start, runtime, name, laboratory.new_path(), batch
                    ).error
                    for batch in case.batches
                ]
            except Exception as error:
                words = words_of_tensorrt(worker.output())
                refused = words and not loads and not laboratory.device.is_known
                status = Status.REFUSED if refused else Status.FAILED
                yield Row(STEP, question, status, words or str(error), figure)
            else:
                is_right = max(errors) <= case.bound
                answer = f"relative error {max(errors):.1e}"
                yield checked(STEP, question, is_right, answer, figure, errors=errors)


def words_of_tensorrt(log: str) -> str:
    """Its errors, as the C++ runtime's log and tensorrt_rtx's own logger have them."""
    found = re.findall(r"ERROR.*?TensorRT-RTX: (.*)|\[TRT\] \[E\] (.*)", log)
    return "; ".join(dict.fromkeys(a or b for a, b in found))


def graph_capture(laboratory: Laboratory) -> Iterator[Row]:
    """Does a CUDA graph that torch captures compute the same?"""
    for runtime in RUNTIMES:
        question = f"CUDA graph capture of {FIRST} on the {runtime} runtime"
        if not isinstance(laboratory.device, GpuDevice):
            yield Row(STEP, question, Status.SKIPPED, "this device has no CUDA")
            continue
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
