"""What check.py makes of the programs that it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.gpu.check import check
from tools.gpu.check.builder import LIBRARY
from tools.gpu.check.check import Check, parse
from tools.gpu.check.prerequisites import Machine
from tools.gpu.names import OWN_CACHE, TEST_PLANS
from tools.gpu.report import Row, Status, write_json

GOOD = Row("runtime cache", "first question", Status.ANSWER, "yes")
REFUSED_BUILD = Row("plans", "of this GPU", Status.REFUSED, "no such capability")
REFUSED_PLANS = Row("runtime cache", "runs", Status.REFUSED, "no such capability")


def make_check(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *words: str,
    capability: str = "8.9",
    can_build_plans: bool = True,
) -> Check:
    """Whatever it would build is there, so that only programs are left to run."""
    versions = {"torch": "2.14", "compute capability": capability}
    machine = Machine(
        versions=versions, has_pytest=True, can_build_plans=can_build_plans
    )
    arguments = parse([str(folder / "out"), "--work", str(folder / "work"), *words])
    for path in (arguments.out, arguments.work / "questions"):
        path.mkdir(parents=True)
    environment = {"CUDA_CACHE_DISABLE": "1", "FILELOCK_3": "/filelock_3"}
    monkeypatch.setattr(Check, "_environment", lambda self, library: dict(environment))
    made = Check(arguments, machine)
    made.log("begins")
    return made


def test_paths_are_those_of_where_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {
        name: f"{name}_dir"
        for name in ("pack", "headers", "googletest", "foreign_cache", "work")
    }
    words = [
        word
        for name, value in options.items()
        for word in (f"--{name.replace('_', '-')}", value)
    ]
    arguments = vars(parse(["out_dir", *words]))
    assert arguments["foreign_cache"] == [tmp_path / "foreign_cache_dir"]
    del options["foreign_cache"]
    assert arguments["out"] == tmp_path / "out_dir"
    assert {n: arguments[n] for n in options} == {
        name: tmp_path / value for name, value in options.items()
    }


@pytest.mark.parametrize(
    ("named", "cache"), [("{0}/xdg", "xdg"), ("relative", ".cache"), ("", ".cache")]
)
def test_what_is_built_is_in_the_users_cache_directory(
    named: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", named.format(tmp_path))
    assert parse(["out_dir"]).work == tmp_path / cache / "torch_tensorrt_gpu"


@pytest.mark.parametrize(
    ("status", "bad"),
    [(0, []), (1, ["status 1"]), (None, ["not ended"]), (-11, ["status -11"])],
)
def test_questions_that_end_early_are_a_failure_and_keep_what_they_found(
    status: int | None, bad: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_check(tmp_path, monkeypatch)

    def run(self: Check, command: list[str], environment: dict[str, str]) -> int | None:
        write_json(Path(command[command.index("--json") + 1]), [GOOD])
        work = Path(command[command.index("--work") + 1])
        (work / OWN_CACHE).write_bytes(b"cache")
        return status

    monkeypatch.setattr(Check, "_run_command", run)
    made._ask_device("gpu", LIBRARY)
    assert made.rows[0] == GOOD
    failures = [row for row in made.rows if row.is_bad]
    assert len(failures) == len(bad)
    assert all(text in row.answer for text, row in zip(bad, failures, strict=True))
    assert (tmp_path / "out" / OWN_CACHE).read_bytes() == b"cache"


def test_questions_without_an_answer_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_check(tmp_path, monkeypatch)
    monkeypatch.setattr(Check, "_run_command", lambda *arguments: 1)
    made._ask_device("gpu", LIBRARY)
    assert [row.is_bad for row in made.rows] == [True]


@pytest.mark.parametrize(
    ("capability", "reason", "status"),
    [
        ("9.0", "RuntimeError: TensorRT-RTX has no such GPU", Status.REFUSED),
        ("8.9", "RuntimeError: TensorRT-RTX has no such layer", Status.FAILED),
        ("9.0", "ImportError: no onnx", Status.FAILED),
    ],
)
def test_only_an_unknown_gpu_may_refuse_a_build(
    capability: str,
    reason: str,
    status: Status,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make_check(tmp_path, monkeypatch, capability=capability)

    def run(self: Check, command: list[str], environment: dict[str, str]) -> int:
        self.log(reason)
        return 1

    monkeypatch.setattr(Check, "_run_command", run)
    made._build_for_this_gpu()
    assert [row.status for row in made.rows] == [status]


class Suites:
    """Stands in for run_pytests: keeps which files it is to run, and with which plans."""

    def __init__(self) -> None:
        self.files: dict[str, list[str]] = {}
        self.plans: str | None = None

    def __call__(
        self, title: str, environment: dict[str, str], files: list[Path], *others: Any
    ) -> Row:
        device = environment["TORCHTRT_TEST_DEVICE"]
        self.files[device] = [file.name for file in files]
        if device == "gpu":
            self.plans = environment.get("TORCHTRT_TEST_PLANS")
        return Row("tests", title, Status.PASSED, "all")


@pytest.fixture
def run_pytests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Suites, list[str]]]:
    """Runs the step, and answers the suites that ran and the questions that were skipped."""
    folder = tmp_path / "tests/py/dynamo"
    folder.mkdir(parents=True)
    (folder / "test_compile.py").write_text("import onnx\n")
    (folder / "test_cache.py").write_text("import torch_tensorrt\n")
    files = sorted(folder.iterdir())
    monkeypatch.setattr(check, "python_tests", lambda: files)

    def run(
        *rows: Row, plans: bool = True, can_build_plans: bool = True
    ) -> tuple[Suites, list[str]]:
        suites = Suites()
        monkeypatch.setattr(check, "run_pytests", suites)
        made = make_check(tmp_path, monkeypatch, can_build_plans=can_build_plans)
        made.rows += rows
        made._plans = tmp_path / "plans"
        if plans:
            (made._plans / TEST_PLANS).mkdir(parents=True)
        made._run_pytests()
        skipped = [row.question for row in made.rows if row.status is Status.SKIPPED]
        return suites, skipped

    return run


def test_the_suite_runs_on_the_gpu_without_onnx(
    run_pytests: Callable[..., tuple[Suites, list[str]]], tmp_path: Path
) -> None:
    suites, skipped = run_pytests(can_build_plans=False)
    assert suites.files == {"simulated": ["test_cache.py"], "gpu": ["test_cache.py"]}
    assert suites.plans == str(tmp_path / "plans" / TEST_PLANS)
    assert skipped == ["pytest suite, compilation"]


def test_the_suite_needs_onnx_or_plans_on_the_gpu(
    run_pytests: Callable[..., tuple[Suites, list[str]]],
) -> None:
    suites, skipped = run_pytests(plans=False, can_build_plans=False)
    assert list(suites.files) == ["simulated"]
    assert skipped == ["pytest suite, compilation", "pytest suite on the GPU"]


def test_the_whole_suite_runs_with_onnx(
    run_pytests: Callable[..., tuple[Suites, list[str]]],
) -> None:
    suites, skipped = run_pytests(plans=False)
    assert suites.files["gpu"] == suites.files["simulated"]
    assert len(suites.files["gpu"]) == 2
    assert suites.plans is None
    assert skipped == []


def test_a_gpu_that_runs_plans_but_can_not_be_built_for_has_the_tests_that_run_plans(
    run_pytests: Callable[..., tuple[Suites, list[str]]],
) -> None:
    suites, skipped = run_pytests(REFUSED_BUILD)
    assert suites.files["gpu"] == ["test_cache.py"]
    assert len(suites.files["simulated"]) == 2
    assert skipped == ["pytest suite, compilation on the GPU"]


def test_a_gpu_that_refuses_the_plans_has_no_tests(
    run_pytests: Callable[..., tuple[Suites, list[str]]],
) -> None:
    suites, skipped = run_pytests(REFUSED_PLANS)
    assert list(suites.files) == ["simulated"]
    assert skipped == ["pytest suite on the GPU"]
