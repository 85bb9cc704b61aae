"""Whether both runtimes compute what eager torch computes on the same device."""

from __future__ import annotations

from tools.gpu import engines
from tools.gpu.engines import RUNTIMES
from tools.gpu.models import CASES
from tools.gpu.questions import Laboratory
from tools.gpu.report import Row, Status
from tools.gpu.workers import WorkerDied, WorkerError

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
