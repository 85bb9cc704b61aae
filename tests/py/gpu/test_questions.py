"""The questions of tools/gpu, asked of the simulated device, whose answers are known."""

from __future__ import annotations

import inspect
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.util.simulation.simulated_device import (
    dynamic_relu_plan,
    installed_device,
    relu_plan,
)
from tests.util.simulation.simulated_tensorrt_rtx import ICudaEngine, IRuntimeCache
from tools.gpu.plans import CASES, FIRST, SECOND
from tools.gpu.questions import engines
from tools.gpu.questions.ask import ask
from tools.gpu.questions.bad_blobs import REJECTED, bad_blobs
from tools.gpu.questions.concurrent_serialization import concurrent_serialization
from tools.gpu.questions.devices import GpuDevice, Plan
from tools.gpu.questions.laboratory import Laboratory, WorkerDied
from tools.gpu.questions.outputs import (
    graph_capture,
    output_equality,
    words_of_tensorrt,
)
from tools.gpu.questions.runtime_cache import (
    byte_equality,
    deserialize_adds,
    merge_of_two_processes,
    size_per_kernel,
)
from tools.gpu.questions.start_times import start_times
from tools.gpu.report import Row, Status

_process = ExitStack()  # what lives as long as this process


class SimulatedDevice(GpuDevice):
    """tests/util/simulation/SimulatedDevice.h. Each plan is a ReLU with the shapes of its case."""

    start_method = "forkserver"

    def __init__(self) -> None:
        super().__init__(Path())

    def install(self) -> Any:
        device = _process.enter_context(installed_device())
        device.set_compile_time(0.01)
        return device

    def is_known(self) -> bool:
        return True

    def cases(self) -> list[str]:
        return [name for name, case in CASES.items() if case.dtype == torch.float32]

    def plan(self, name: str) -> Plan:
        case = CASES[name]
        kernels = f"{name}_", 3, 1000
        if len(case.batches) == 1:
            engine = relu_plan(*kernels, case.shape)
        else:
            least, tuned, greatest = (
                (batch, *case.shape[1:])
                for batch in (case.batches[0], case.shape[0], case.batches[-1])
            )
            engine = dynamic_relu_plan(least, tuned, greatest, *kernels)
        return torch.frombuffer(bytearray(engine), dtype=torch.uint8), ["x"], ["y"]

    def example(
        self, name: str, batch: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = CASES[name].make_input(batch)
        return x, torch.relu(x)


@pytest.fixture
def laboratory(tmp_path: Path) -> Laboratory:
    folder = tmp_path / "laboratory"
    folder.mkdir()
    return Laboratory(SimulatedDevice(), folder, tmp_path / "own.cache")


class ReplacingDevice(SimulatedDevice):
    def install(self) -> Any:
        device = super().install()
        device.set_deserialize_mode("replaces")
        return device


@pytest.mark.parametrize(
    ("device", "answer", "status"),
    [
        (SimulatedDevice(), "adds", Status.ANSWER),
        (ReplacingDevice(), "replaces", Status.CONTRADICTION),
    ],
)
def test_whether_deserialize_adds(
    device: SimulatedDevice, answer: str, status: Status, laboratory: Laboratory
) -> None:
    laboratory.device = device
    signs, row = deserialize_adds(laboratory)
    assert (signs.answer, signs.status) == ("yes", Status.ANSWER)
    assert (row.answer, row.status) == (answer, status)


@pytest.mark.parametrize(
    ("device", "answer", "status"),
    [
        (SimulatedDevice(), "yes", Status.ANSWER),
        (ReplacingDevice(), f"no, {FIRST}'s are missing", Status.CONTRADICTION),
    ],
)
def test_whether_a_file_has_the_kernels_of_two_processes(
    device: SimulatedDevice, answer: str, status: Status, laboratory: Laboratory
) -> None:
    laboratory.device = device
    rows = list(merge_of_two_processes(laboratory))
    assert [(row.answer, row.status) for row in rows] == [(answer, status)] * 3


def test_byte_equality(laboratory: Laboratory) -> None:
    assert [row.answer for row in byte_equality(laboratory)] == ["yes"] * 5


def test_sizes_of_merged_caches_tell_nothing_where_deserialize_replaces(
    laboratory: Laboratory,
) -> None:
    laboratory.device = ReplacingDevice()
    bad = [row.question for row in byte_equality(laboratory) if row.is_bad]
    assert bad == ["does the size of merged caches tell what is in them"]


def test_size_per_kernel(laboratory: Laboratory) -> None:
    whole, kernel = size_per_kernel(laboratory)
    # Three kernels of 1000 bytes, for each of five shapes.
    assert re.search(rf"{FIRST} 3\d{{3}} B", whole.answer)
    assert len(re.findall(r"batch \d 3[0-2]\d\d B", kernel.answer)) == 5


class OtherVersion(SimulatedDevice):
    def install(self) -> Any:
        device = super().install()
        device.set_environment(tensorrt_rtx_version="99.0.0.0")
        return device


def test_unusable_files_are_rejected_by_both_runtimes(laboratory: Laboratory) -> None:
    laboratory.device = OtherVersion()
    for _ in byte_equality(laboratory):
        pass  # writes own_cache
    laboratory.device = SimulatedDevice()
    laboratory.foreign_caches = [laboratory.own_cache]
    rows = list(bad_blobs(laboratory, flips=5))
    assert len(rows) == 10
    for row in rows:
        assert row.status is Status.ANSWER, row
        assert re.fullmatch(rf"\d {REJECTED}", row.answer)


class CrashingDevice(SimulatedDevice):
    """The second engine that starts in a process ends it."""

    def example(
        self, name: str, batch: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if _was_started:
            os.abort()
        _was_started.append(True)
        return super().example(name, batch)


_was_started: list[bool] = []


def test_a_crash_on_an_unusable_file_contradicts_the_design(
    laboratory: Laboratory,
) -> None:
    laboratory.device = CrashingDevice()
    # There is no foreign cache.
    skipped, cut, *_ = bad_blobs(laboratory, flips=1)
    assert skipped.status is Status.SKIPPED
    assert cut.status is Status.CONTRADICTION
    assert cut.answer == f"1 {REJECTED}, to 7 B: CRASH: Aborted"


class HangingDevice(SimulatedDevice):
    """No start on a file ends."""

    def example(
        self, name: str, batch: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if inspect.stack()[1].function == engines.start.__name__:
            time.sleep(600)
        return super().example(name, batch)


def test_files_on_which_starts_hang_do_not_use_up_the_time(
    laboratory: Laboratory,
) -> None:
    laboratory.device = HangingDevice()
    _, cut, *_ = bad_blobs(laboratory, flips=1, timeout=0.1)
    assert cut.status is Status.CONTRADICTION
    assert cut.answer == "to 1 B: HANG: no result within 0.1 s"


class SpoiltDevice(SimulatedDevice):
    """Its plans have no kernels, so that no start compiles anything."""

    def cases(self) -> list[str]:
        return [FIRST, SECOND]

    def plan(self, name: str) -> Plan:
        plan = relu_plan(dims=CASES[name].shape)
        return torch.frombuffer(bytearray(plan), dtype=torch.uint8), ["x"], ["y"]


def test_what_can_not_be_told_is_no_answer(laboratory: Laboratory) -> None:
    laboratory.device = SpoiltDevice()
    signs, *rows = deserialize_adds(laboratory)
    assert (signs.answer, signs.status) == ("no", Status.CONTRADICTION)
    rows += merge_of_two_processes(laboratory)
    rows += concurrent_serialization(laboratory, rounds=1)
    assert len(rows) == 6
    assert all(row.answer.startswith("can't be told") for row in rows)
    assert all(row.is_bad for row in rows)


def test_output_equality(laboratory: Laboratory) -> None:
    rows = list(output_equality(laboratory))
    assert len(rows) == 6
    assert {row.status for row in rows} == {Status.PASSED}
    assert [row.figure for row in rows if "dynamic" in row.question] == [
        "at most 2e-03, for batches of 1, 4, 15, 16"
    ] * 2


class WrongDevice(SimulatedDevice):
    """Expects other outputs than the engines compute."""

    def example(
        self, name: str, batch: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, expected = super().example(name, batch)
        return x, expected * 1.003


def test_output_beyond_its_bound_is_a_failure(laboratory: Laboratory) -> None:
    laboratory.device = WrongDevice()
    rows = list(output_equality(laboratory))
    assert {row.status for row in rows} == {Status.FAILED}
    assert {row.answer for row in rows} == {"relative error 3.0e-03"}


def test_start_times(laboratory: Laboratory) -> None:
    rows = list(start_times(laboratory, repeats=2))
    assert [row.question for row in rows] == [
        f"{temperature} start of {SECOND}, {runtime}"
        for runtime in ("C++", "Python")
        for temperature in ("cold", "warm")
    ]
    for row in rows:
        assert row.status is Status.PASSED, row
        milliseconds = [float(ms) for ms in re.findall(r"([\d.]+) ms", row.figure)]
        assert len(milliseconds) == 2
        if row.question.startswith("cold"):
            assert min(milliseconds) >= 3 * 10  # three kernels


def test_a_cache_may_be_serialized_while_contexts_compile(
    laboratory: Laboratory,
) -> None:
    rows = concurrent_serialization(laboratory, rounds=1)
    assert [(row.answer, row.status) for row in rows] == [("yes", Status.ANSWER)] * 2


class UnsafeDevice(SimulatedDevice):
    """Python runtime: a serialization while a context compiles does harm.

    Attributes:
        harm: It tears the bytes, clears the cache or ends the process.
    """

    def __init__(self, harm: str) -> None:
        super().__init__()
        self.harm = harm

    def install(self) -> Any:
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
        return super().install()


@pytest.mark.parametrize(
    ("harm", "answer"),
    [
        ("tears", r"no: \d+ of \d+ of them are rejected"),
        ("clears", r"no: the cache has \d+ B in the end"),
        ("crashes", "no: CRASH: Aborted"),
    ],
)
def test_serializations_that_do_harm_contradict_the_design(
    harm: str, answer: str, laboratory: Laboratory
) -> None:
    laboratory.device = UnsafeDevice(harm)
    cpp, python = concurrent_serialization(laboratory)
    assert cpp.answer == "yes"
    assert re.fullmatch(answer, python.answer)
    assert python.status is Status.CONTRADICTION


class PlanlessDevice(SimulatedDevice):
    def plan(self, name: str) -> Plan:
        return torch.zeros(16, dtype=torch.uint8), ["x"], ["y"]


class UnknownDevice(PlanlessDevice):
    def is_known(self) -> bool:
        return False


class ComplainingDevice(SimulatedDevice):
    """Loads plans, and has TensorRT-RTX complain of how they are run."""

    def is_known(self) -> bool:
        return False

    def example(
        self, name: str, batch: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        os.write(1, b"[TRT] [E] enqueueV3: Parameter check failed\n")
        raise RuntimeError("could not run the engine")


@pytest.mark.parametrize(
    ("device", "status", "words"),
    [
        (UnknownDevice(), Status.REFUSED, "rejects the plan"),
        (PlanlessDevice(), Status.FAILED, "rejects the plan"),
        (ComplainingDevice(), Status.FAILED, "Parameter check failed"),
    ],
)
def test_only_an_unknown_device_may_refuse_to_load_plans(
    device: SimulatedDevice, status: Status, words: str, laboratory: Laboratory
) -> None:
    laboratory.device = device
    rows = list(output_equality(laboratory))
    assert [row.status for row in rows] == [status] * 6
    assert all(words in row.answer for row in rows)


def test_a_device_that_refuses_all_plans_is_asked_nothing_else(
    laboratory: Laboratory,
) -> None:
    laboratory.device = UnknownDevice()
    *_, last = ask(laboratory)
    assert (last.question, last.status) == ("all others", Status.SKIPPED)


def log_as_tensorrt_does() -> None:
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.INFO)
    logger.log(trt.Logger.INFO, "some plan")
    logger.log(trt.Logger.ERROR, "no such GPU")


def test_the_words_of_tensorrt_s_python_package_are_heard(
    laboratory: Laboratory,
) -> None:
    with laboratory.worker() as worker:
        worker(log_as_tensorrt_does)
        assert "some plan" in worker.output()
        assert words_of_tensorrt(worker.output()) == "no such GPU"


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (1e-4, Status.PASSED),
        (3e-3, Status.FAILED),
        (
            RuntimeError("This inference can't be captured in a CUDA graph, with"),
            Status.ANSWER,
        ),
        (
            RuntimeError("operation not permitted when stream is capturing"),
            Status.FAILED,
        ),
        (WorkerDied("CRASH: Segmentation fault"), Status.FAILED),
    ],
)
def test_graph_capture(
    result: float | Exception,
    status: Status,
    laboratory: Laboratory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def worker(function: Callable[..., float], *arguments: str) -> float:
        assert function is engines.replay
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(laboratory, "worker", lambda: nullcontext(worker))
    rows = list(graph_capture(laboratory))
    assert [row.status for row in rows] == [status] * 2
    assert all(str(result) in row.answer or status is not Status.ANSWER for row in rows)


def test_a_question_that_breaks_off_stops_no_other(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_question(laboratory: Laboratory) -> Iterator[Row]:
        yield from ()
        raise RuntimeError("the disk is full")

    def good_question(laboratory: Laboratory) -> Iterator[Row]:
        yield Row("step", "good", Status.ANSWER, "yes")

    questions = [good_question, broken_question, good_question]
    monkeypatch.setattr("tools.gpu.questions.ask.QUESTIONS", questions)
    rows = list(ask(laboratory))[-3:]
    assert [row.answer for row in rows] == [
        "yes",
        "it broke off: RuntimeError: the disk is full",
        "yes",
    ]
    assert [row.is_bad for row in rows] == [False, True, False]


# Workers


class SpawningDevice(SimulatedDevice):
    """Its workers are started as a GPU's are."""

    start_method = "spawn"


def fail() -> None:
    raise ValueError("no such plan")


@pytest.mark.parametrize("device", [SimulatedDevice(), SpawningDevice()])
def test_a_worker_calls_functions_until_it_ends(
    device: SimulatedDevice, laboratory: Laboratory
) -> None:
    laboratory.device = device
    with laboratory.worker() as worker:
        assert worker(os.getpid) == worker(os.getpid) != os.getpid()
        with pytest.raises(ValueError, match="no such plan"):
            worker(fail)
        worker(os.write, 1, b"begun, ")
        worker(os.write, 2, b"ready\n")
        assert worker.output() == "begun, ready\n"
        with pytest.raises(WorkerDied, match="CRASH: Segmentation fault"):
            worker(signal.raise_signal, signal.SIGSEGV)
        with pytest.raises(WorkerDied, match="CRASH"):
            worker(os.getpid)
    with laboratory.worker() as worker, pytest.raises(WorkerDied, match="it ended"):
        worker(os._exit, 3)


class DeadDevice(SimulatedDevice):
    def install(self) -> Any:
        os.abort()


def test_a_worker_that_does_not_begin_has_crashed(laboratory: Laboratory) -> None:
    laboratory.device = DeadDevice()
    with laboratory.worker() as worker, pytest.raises(WorkerDied, match="Aborted"):
        worker(os.getpid)
