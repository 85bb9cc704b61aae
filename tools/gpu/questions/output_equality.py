"""Whether both runtimes compute what eager torch computes on the same device."""

from __future__ import annotations

from tools.gpu.names import FIRST
from tools.gpu.plans.models import CASES
from tools.gpu.questions import engines
from tools.gpu.questions.engines import RUNTIMES
from tools.gpu.questions.laboratory import Laboratory
from tools.gpu.questions.workers import WorkerDied, WorkerError
from tools.gpu.report import Row, Status

STEP = "output equality"


def output_equality(laboratory: Laboratory) -> list[Row]:
    """A row for each plan and runtime, the worst of its shapes; models.py has the bounds."""
    rows = []
    for runtime in RUNTIMES:
        with laboratory.worker() as worker:
            for name in laboratory.device.cases():
                case = CASES[name]
                errors = {}
                failure = ""
                for batch in case.batch_sizes:
                    try:
                        start = worker(engines.start, runtime, name, None, batch)
                    except (WorkerError, WorkerDied) as error:
                        failure = f"batch {batch}: {error}"
                        break
                    errors[batch] = start.error
                is_right = not failure and all(e <= case.bound for e in errors.values())
                shapes = "static" if case.batches is None else "dynamic"
                worst = max(errors.values(), default=float("inf"))
                rows.append(
                    Row(
                        STEP,
                        f"{name} on the {runtime} runtime, {shapes} shape",
                        Status.PASSED if is_right else Status.FAILED,
                        failure or f"relative error {worst:.1e}",
                        f"at most {case.bound:.0e}",
                        "|y - r| / |r|, r being eager torch's, for batches of "
                        f"{', '.join(map(str, errors))}",
                        {"errors": errors},
                    )
                )
    return rows


def graph_capture(laboratory: Laboratory) -> list[Row]:
    """Does a CUDA graph that torch captures compute the same? A row for each runtime."""
    return [_graph_capture(laboratory, runtime) for runtime in RUNTIMES]


def _graph_capture(laboratory: Laboratory, runtime: str) -> Row:
    question = f"CUDA graph capture of {FIRST} on the {runtime} runtime"
    if not laboratory.device.has_cuda():
        return Row(STEP, question, Status.SKIPPED, "this device has no CUDA")
    bound = CASES[FIRST].bound
    figure = f"at most {bound:.0e}"
    how = "warmed up on another stream, captured, and replayed with another input"
    try:
        with laboratory.worker() as worker:
            error = worker(engines.replay, runtime, FIRST)
    except (WorkerError, WorkerDied) as failure:
        # The words of either runtime; so it is to be where TensorRT-RTX or torch can't.
        declined = "can't be captured in a CUDA graph" in str(failure)
        status = Status.ANSWER if declined else Status.FAILED
        return Row(STEP, question, status, f"no: {failure}", figure, how)
    status = Status.PASSED if error <= bound else Status.FAILED
    return Row(STEP, question, status, f"relative error {error:.1e}", figure, how)
