"""The questions of tools/gpu, asked of the simulated device, whose answers are known."""

from __future__ import annotations

import inspect
import os
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

from tests.util.simulation.simulated_device import relu_plan
from tests.util.simulation.simulated_tensorrt_rtx import ICudaEngine, IRuntimeCache
from tools.gpu.names import FIRST, OWN_CACHE, SECOND
from tools.gpu.plans.models import CASES
from tools.gpu.questions import engines
from tools.gpu.questions.ask import ask
from tools.gpu.questions.bad_blobs import LEFT_OUT, REJECTED, bad_blobs
from tools.gpu.questions.concurrent_serialization import concurrent_serialization
from tools.gpu.questions.devices import Plan, SimulatedDevice
from tools.gpu.questions.laboratory import Laboratory
from tools.gpu.questions.output_equality import graph_capture, output_equality
from tools.gpu.questions.runtime_cache import (
    byte_equality,
    deserialize_adds,
    merge_of_two_processes,
    own_cache,
    refusal,
    signs_of_compilation,
    size_per_kernel,
    words_of_tensorrt,
)
from tools.gpu.questions.start_times import start_times
from tools.gpu.questions.workers import WorkerDied, WorkerError
from tools.gpu.report import Row, Status


def laboratory(parent: Path, device: SimulatedDevice | None = None) -> Laboratory:
    return Laboratory(device or SimulatedDevice(), Path(mkdtemp(dir=parent)))


def answers(rows: list[Row]) -> dict[str, str]:
    return {row.question: row.answer for row in rows}


@pytest.mark.parametrize(
    ("mode", "status"),
    [("adds", Status.ANSWER), ("replaces", Status.CONTRADICTION)],
)
def test_whether_deserialize_adds(mode: str, status: Status, tmp_path: Path) -> None:
    (row,) = deserialize_adds(laboratory(tmp_path, SimulatedDevice(mode)))
    assert (row.answer, row.status) == (mode, status)
    assert row.details["accepted"] == [True, True]


@pytest.mark.parametrize(
    ("mode", "answer", "statuses"),
    [
        ("adds", "yes", {Status.ANSWER}),
        ("replaces", "no, it lacks mlp_float32's", {Status.CONTRADICTION}),
    ],
)
def test_whether_a_file_holds_the_kernels_of_two_processes(
    mode: str, answer: str, statuses: set[Status], tmp_path: Path
) -> None:
    rows = merge_of_two_processes(laboratory(tmp_path, SimulatedDevice(mode)))
    assert len(rows) == 3
    assert {row.answer for row in rows} == {answer}
    assert {row.status for row in rows} == statuses


def test_byte_equality(tmp_path: Path) -> None:
    rows = byte_equality(laboratory(tmp_path))
    assert set(answers(rows).values()) == {"yes"}


def test_sizes_of_merged_caches_tell_nothing_where_deserialize_replaces(
    tmp_path: Path,
) -> None:
    rows = byte_equality(laboratory(tmp_path, SimulatedDevice("replaces")))
    bad = [row for row in rows if row.is_bad]
    assert [row.question for row in bad] == [
        "does the size of merged caches tell what is in them"
    ]


def test_size_per_kernel(tmp_path: Path) -> None:
    whole, kernel = size_per_kernel(laboratory(tmp_path))
    sizes = whole.details["sizes"]
    assert sizes[FIRST] > 3 * 1000  # three kernels of 1000 bytes
    # Two kernels for each of five shapes.
    assert len(kernel.details["growths"]) == 5
    assert all(2000 < growth < 2200 for growth in kernel.details["growths"])


def test_signs_of_compilation(tmp_path: Path) -> None:
    (row,) = signs_of_compilation(
        laboratory(tmp_path, SimulatedDevice(compile_time=0.01))
    )
    assert row.answer == "the cache's size"
    assert row.status is Status.ANSWER


def test_unusable_files_are_rejected_by_both_runtimes(tmp_path: Path) -> None:
    other_version = laboratory(tmp_path, SimulatedDevice(version="1.7.1.116"))
    with other_version.worker() as worker:
        foreign = worker(engines.raw_run, FIRST, []).after
    asked = laboratory(tmp_path)
    asked.foreign_caches = {"of 1.7.1.116": foreign}
    rows = bad_blobs(asked, flips=5)
    assert len(rows) == 10
    for row in rows:
        assert row.status is Status.ANSWER, row
        assert set(row.details["outcomes"].values()) == {REJECTED}


@dataclass(frozen=True)
class BrokenDevice(SimulatedDevice):
    """Expects what the engines do not compute, or gives plans that can't be loaded."""

    has_plans: bool = True

    def plan(self, name: str) -> Plan:
        plan = super().plan(name)
        if self.has_plans:
            return plan
        return Plan(plan.case, torch.zeros(16, dtype=torch.uint8), ["x"], ["y"])

    def example(
        self, name: str, batch: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, expected = super().example(name, batch)
        return x, expected * 1.003


@dataclass(frozen=True)
class CrashingDevice(SimulatedDevice):
    """Its second use in a process by one of our runtimes ends that."""

    def compilations(self) -> int | None:
        global _uses
        _uses += 1
        if _uses == 3:
            os.abort()
        return super().compilations()


_uses = 0


def test_a_crash_on_an_unusable_file_contradicts_the_design(tmp_path: Path) -> None:
    rows = bad_blobs(laboratory(tmp_path, CrashingDevice()), flips=1)
    # No foreign cache was given; six are cut off, each second of which starts crash.
    skipped, cut, *_ = rows
    assert skipped.status is Status.SKIPPED
    assert cut.status is Status.CONTRADICTION
    assert cut.answer == (
        "3 rejected with a warning, 3 CRASH (to 7 B: CRASH: killed by SIGABRT)"
    )


@dataclass(frozen=True)
class HangingDevice(SimulatedDevice):
    """No start on a file comes to its end; those on none do."""

    def compilations(self) -> int | None:
        if any(frame.function == engines.start.__name__ for frame in inspect.stack()):
            time.sleep(600)
        return super().compilations()


def test_files_on_which_starts_hang_do_not_use_up_the_time(tmp_path: Path) -> None:
    rows = bad_blobs(laboratory(tmp_path, HangingDevice()), flips=1, timeout=0.1)
    _, cut, *_ = rows
    assert cut.status is Status.CONTRADICTION
    assert cut.answer == (
        f"3 HANG, 3 {LEFT_OUT} (to 1 B: HANG: no answer within 0.1 s)"
    )


def test_files_of_an_earlier_run_are_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "0.cache").touch()
    with pytest.raises(ValueError, match="must be empty"):
        Laboratory(SimulatedDevice(), tmp_path)


@dataclass(frozen=True)
class SpoiltDevice(SimulatedDevice):
    """Its plans have no kernels, so that no start compiles anything."""

    def cases(self) -> list[str]:
        return [FIRST, SECOND]

    def plan(self, name: str) -> Plan:
        plan = relu_plan(dims=CASES[name].shape)
        engine = torch.frombuffer(bytearray(plan), dtype=torch.uint8)
        return Plan(CASES[name], engine, ["x"], ["y"])


def test_what_can_not_be_told_is_no_answer(tmp_path: Path) -> None:
    asked = laboratory(tmp_path, SpoiltDevice())
    rows = [*deserialize_adds(asked), *merge_of_two_processes(asked)]
    assert len(rows) == 4
    assert all(row.answer.startswith("can't be told: ") for row in rows)
    assert all(row.is_bad for row in rows)


def test_output_equality(tmp_path: Path) -> None:
    rows = output_equality(laboratory(tmp_path))
    assert {row.status for row in rows} == {Status.PASSED}
    dynamic = [row for row in rows if "dynamic" in row.question]
    assert [set(row.details["errors"]) for row in dynamic] == [{1, 4, 15, 16}] * 2


def test_output_beyond_its_bound_is_a_failure(tmp_path: Path) -> None:
    rows = output_equality(laboratory(tmp_path, BrokenDevice()))
    assert {row.status for row in rows} == {Status.FAILED}
    assert {row.answer for row in rows} == {"relative error 3.0e-03"}


def test_start_times(tmp_path: Path) -> None:
    device = SimulatedDevice(compile_time=0.01)
    rows = start_times(laboratory(tmp_path, device), repeats=2)
    assert [row.question for row in rows] == [
        "cold start, C++",
        "warm start, C++",
        "cold start, Python",
        "warm start, Python",
    ]
    for row in rows:
        assert row.status is Status.PASSED, row
        assert len(row.details["seconds"]) == 2
        if row.question.startswith("cold"):
            assert min(row.details["seconds"]) >= 5 * device.compile_time


def test_a_cache_may_be_serialized_while_contexts_compile(tmp_path: Path) -> None:
    device = SimulatedDevice(compile_time=0.01)
    rows = concurrent_serialization(laboratory(tmp_path, device), rounds=1)
    assert [(row.answer, row.status) for row in rows] == [("yes", Status.ANSWER)] * 2


@dataclass(frozen=True)
class UnsafeDevice(SimulatedDevice):
    """Python runtime: a serialization while a context compiles does harm.

    Attributes:
        harm: It tears the bytes, clears the cache or ends the process.
    """

    harm: str = ""

    def install(self) -> None:
        super().install()
        harm = self.harm
        compile_kernels = ICudaEngine.create_execution_context
        serialize = IRuntimeCache.serialize
        compiling: list[object] = []

        def create_execution_context(self: ICudaEngine, runtime_config: Any) -> Any:
            compiling.append(self)
            try:
                return compile_kernels(self, runtime_config)
            finally:
                compiling.remove(self)

        def serialize_with_harm(self: IRuntimeCache) -> Any:
            data = serialize(self)
            if compiling and harm == "tears":
                return memoryview(bytes(data)[:-1])
            if compiling and harm == "clears":
                self.reset()
            if compiling and harm == "crashes":
                os.abort()
            return data

        ICudaEngine.create_execution_context = create_execution_context  # type: ignore[method-assign]
        IRuntimeCache.serialize = serialize_with_harm  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("harm", "answer"),
    [
        ("tears", r"no: \d+ of \d+ serializations are rejected"),
        ("clears", r"no: the cache has \d+ B in the end"),
        ("crashes", "no: killed by SIGABRT"),
    ],
)
def test_serializations_that_do_harm_contradict_the_design(
    harm: str, answer: str, tmp_path: Path
) -> None:
    device = UnsafeDevice(compile_time=0.01, harm=harm)
    cpp, python = concurrent_serialization(laboratory(tmp_path, device), rounds=1)
    assert cpp.answer == "yes"
    assert re.fullmatch(answer, python.answer)
    assert python.status is Status.CONTRADICTION


def test_serializations_that_met_no_compilation_tell_nothing(tmp_path: Path) -> None:
    asked = laboratory(tmp_path, SpoiltDevice())
    rows = concurrent_serialization(asked, rounds=1)
    assert {row.answer for row in rows} == {
        "can't be told: no serialization had some of the kernels"
    }
    assert all(row.is_bad for row in rows)


@pytest.mark.parametrize(
    ("known", "status"), [(False, Status.REFUSED), (True, Status.FAILED)]
)
def test_only_an_unknown_device_may_refuse_the_plans(
    known: bool, status: Status, tmp_path: Path
) -> None:
    device = BrokenDevice(has_plans=False, known=known)
    rows = refusal(laboratory(tmp_path, device))
    assert [row.status for row in rows] == [status] * 2
    assert all("rejects the plan" in row.answer for row in rows)


@dataclass(frozen=True)
class ComplainingDevice(SimulatedDevice):
    """Loads plans, and has TensorRT-RTX complain of how they are run."""

    def synchronize(self) -> None:
        os.write(1, b"[TRT] [E] enqueueV3: Parameter check failed\n")
        raise RuntimeError("could not run the engine")


def test_a_plan_that_loads_is_not_refused(tmp_path: Path) -> None:
    rows = refusal(laboratory(tmp_path, ComplainingDevice(known=False)))
    assert [row.status for row in rows] == [Status.FAILED] * 2
    assert all("Parameter check failed" in row.answer for row in rows)


def log_as_tensorrt_does() -> None:
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.INFO)
    logger.log(trt.Logger.INFO, "some plan")
    logger.log(trt.Logger.ERROR, "no such GPU")


def test_the_words_of_tensorrt_s_python_package_are_heard(tmp_path: Path) -> None:
    with laboratory(tmp_path).worker() as worker:
        worker(log_as_tensorrt_does)
        assert "some plan" in worker.output()
        assert words_of_tensorrt(worker.output()) == "no such GPU"


class FreshlyAskedDevice(SimulatedDevice):
    """Its workers are what a GPU's are."""

    wants_fresh_workers = True


def test_own_cache_is_one_that_a_start_accepts(tmp_path: Path) -> None:
    asked = laboratory(tmp_path, FreshlyAskedDevice())
    (row,) = own_cache(asked)
    data = (asked.folder / OWN_CACHE).read_bytes()
    assert row.figure == f"{len(data)} B"
    assert asked.raw_run(FIRST, [data]).compiled_nothing


def test_graph_capture_is_skipped_without_cuda(tmp_path: Path) -> None:
    rows = graph_capture(laboratory(tmp_path))
    assert [row.status for row in rows] == [Status.SKIPPED] * 2


class CudaDevice(SimulatedDevice):
    def has_cuda(self) -> bool:
        return True


class AnsweringWorker:
    """Its process is left out: it answers, or raises, the same each time."""

    def __init__(self, answer: float | Exception) -> None:
        self.answer = answer

    def __call__(self, function: Callable[..., float], *arguments: str) -> float:
        assert function is engines.replay
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (1e-4, Status.PASSED),
        (3e-3, Status.FAILED),
        (
            WorkerError("This inference can't be captured in a CUDA graph, so", ""),
            Status.ANSWER,
        ),
        (
            WorkerError("operation not permitted when stream is capturing", ""),
            Status.FAILED,
        ),
        (WorkerDied("killed by SIGSEGV"), Status.FAILED),
    ],
)
def test_graph_capture(
    answer: float | Exception,
    status: Status,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = laboratory(tmp_path, CudaDevice())
    worker = AnsweringWorker(answer)
    monkeypatch.setattr(asked, "worker", lambda: nullcontext(worker))
    rows = graph_capture(asked)
    assert [row.status for row in rows] == [status] * 2
    assert all(str(answer) in row.answer or status is not Status.ANSWER for row in rows)


def refused(laboratory: Laboratory) -> list[Row]:
    return [Row("step", "refused", Status.REFUSED, "in its own words")]


def test_after_a_refusal_nothing_else_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.gpu.questions.ask.refusal", refused)
    rows = ask(laboratory(tmp_path), say=lambda text: None)
    assert [row.status for row in rows] == [Status.REFUSED, Status.SKIPPED]


def broken_question(laboratory: Laboratory) -> list[Row]:
    """A question that breaks off."""
    raise RuntimeError("the disk is full")


def good_question(laboratory: Laboratory) -> list[Row]:
    """A good one."""
    return [Row("step", "good", Status.ANSWER, "yes")]


def test_a_question_that_breaks_off_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only: list[Callable[[Laboratory], list[Row]]] = [broken_question, good_question]
    monkeypatch.setattr("tools.gpu.questions.ask.QUESTIONS", only)
    for name in ("refusal", "bad_blobs", "output_equality", "graph_capture"):
        monkeypatch.setattr(f"tools.gpu.questions.ask.{name}", good_question)
    for name in ("start_times", "concurrent_serialization"):
        monkeypatch.setattr(f"tools.gpu.questions.ask.{name}", lambda laboratory: [])
    said: list[str] = []
    kept: list[int] = []
    rows = ask(laboratory(tmp_path), said.append, lambda rows: kept.append(len(rows)))
    assert [row.is_bad for row in rows] == [False, True, False, False, False, False]
    assert kept == [
        1,
        2,
        3,
        4,
        5,
        5,
        5,
        6,
    ]  # after each question, which may be the last
    assert rows[1].answer == "it broke off: RuntimeError: the disk is full"
    assert said[1].startswith("A question that breaks off.")
