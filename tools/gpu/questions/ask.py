"""Asks a device all questions and writes the rows as JSON.

    python -m tools.gpu.questions.ask --device gpu --plans DIR --work DIR --json FILE

Exit status 0: all was asked, and the rows say how it came out.

The package torch_tensorrt must be importable; with `--device simulated`, on the library that has
the simulated device.
"""

from __future__ import annotations

import argparse
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tools.gpu.names import CACHE_STEP
from tools.gpu.questions.bad_blobs import bad_blobs
from tools.gpu.questions.concurrent_serialization import concurrent_serialization
from tools.gpu.questions.devices import Device, GpuDevice, SimulatedDevice
from tools.gpu.questions.laboratory import Laboratory, Question
from tools.gpu.questions.output_equality import graph_capture, output_equality
from tools.gpu.questions.runtime_cache import QUESTIONS, refusal
from tools.gpu.questions.start_times import start_times
from tools.gpu.report import Row, Status, write_json


def ask(
    laboratory: Laboratory,
    say: Callable[[str], object] = print,
    keep: Callable[[list[Row]], object] = lambda rows: None,
) -> list[Row]:
    """All rows. A question that breaks off is a row too, and the others are asked all the same.

    Args:
        say: Gets a line about each question that was asked.
        keep: Gets the rows so far after each, lest they are lost if this process is ended.
    """
    rows = _asked(refusal, laboratory, say)
    keep(rows)
    if any(row.status is not Status.ANSWER for row in rows):
        reason = "the plans do not run"
        return [*rows, Row(CACHE_STEP, "all others", Status.SKIPPED, reason)]
    # What may hang comes last.
    questions = [
        *QUESTIONS,
        output_equality,
        graph_capture,
        start_times,
        concurrent_serialization,
        bad_blobs,
    ]
    for question in questions:
        rows += _asked(question, laboratory, say)
        keep(rows)
    return rows


def _asked(
    question: Question, laboratory: Laboratory, say: Callable[[str], object]
) -> list[Row]:
    text = (question.__doc__ or question.__name__).partition("\n")[0]
    begin = time.perf_counter()
    try:
        rows = question(laboratory)
    except Exception as error:
        details = {
            "traceback": traceback.format_exc(),
            "worker": getattr(error, "details", ""),
        }
        answer = f"it broke off: {type(error).__name__}: {error}"
        rows = [Row(CACHE_STEP, text, Status.FAILED, answer, details=details)]
    say(f"{text} {time.perf_counter() - begin:.1f} s")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["gpu", "simulated"], required=True)
    parser.add_argument("--plans", type=Path, help="of build_plans.py; for the GPU")
    parser.add_argument(
        "--work", type=Path, required=True, help="for files; what is there goes"
    )
    parser.add_argument("--json", type=Path, required=True, help="the rows")
    parser.add_argument("--foreign-cache", type=Path, action="append", default=[])
    arguments = parser.parse_args()

    device: Device = SimulatedDevice(compile_time=0.01)
    if arguments.device == "gpu":
        if arguments.plans is None:
            parser.error("--device gpu needs --plans")
        device = GpuDevice(arguments.plans)
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    foreign = {str(path): path.read_bytes() for path in arguments.foreign_cache}
    laboratory = Laboratory(device, arguments.work, foreign)
    rows = ask(
        laboratory,
        lambda text: print(text, flush=True),
        lambda rows: write_json(arguments.json, rows),
    )
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
