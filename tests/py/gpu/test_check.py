"""The steps of check.py, and what it makes of the programs that it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.gpu import check
from tools.gpu.check import Check, parse
from tools.gpu.prerequisites import Machine
from tools.gpu.report import Report, Row, Status, guarded, table

REFUSED_BUILD = Row("engines", "of this GPU", Status.REFUSED, "no such capability")
REFUSED_PLANS = Row("output equality", "runs", Status.REFUSED, "no such capability")


class Commands:
    """Takes the place of Check.command. Keeps the files of tests that it gets, and the plans."""

    def __init__(self) -> None:
        self.answer = 0, "1 passed in 1s"
        self.files: dict[str, set[str]] = {}
        self.plans: str | None = None

    def __call__(
        self, words: list[str], environment: dict[str, str] | None = None
    ) -> tuple[int, str]:
        if environment:
            device = environment["TORCHTRT_TEST_DEVICE"]
            self.files.setdefault(device, set()).add(Path(words[-1]).name)
            self.plans = environment.get("TORCHTRT_TEST_PLANS")
        return self.answer


def make_check(folder: Path, *rows: Row) -> Check:
    arguments = parse([str(folder / "out"), "--work", str(folder / "work")])
    arguments.out.mkdir()
    report = Report(arguments.out, {})
    report.rows += rows
    made = Check(arguments, Machine(), report)
    made._can_compile = True
    made._plans = folder / "plans"
    return made


@pytest.fixture
def tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree has one file of tests of each sort."""
    monkeypatch.setattr(check, "_ROOT", tmp_path)
    for name, text in (
        ("compile/test_compile.py", "import onnx"),
        ("dynamo/deep/test_engines.py", "import runtime_testing"),
        ("runtime/test_fleet.py", "import runtime_testing, fleet_testing"),
        ("runtime/test_files.py", "import os"),
        ("gpu/test_check.py", "runtime_testing"),
    ):
        path = tmp_path / "tests/py" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_paths_are_those_of_where_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--pack", "p", "--headers", "h", "--foreign-cache", "c", "--work", "w"]
    arguments = vars(parse(["o", *options]))
    assert arguments["foreign_cache"] == [tmp_path / "c"]
    for name in ("out", "pack", "headers", "work"):
        assert arguments[name] == tmp_path / name[0]


def test_a_command_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_TIMEOUT", 1)
    begin = time.monotonic()
    alive = tmp_path / "alive"
    program = f"(while sleep 0.1; do touch '{alive}'; done) & echo began; wait"
    row = make_check(tmp_path).checked_command("step", "ends", ["sh", "-c", program])
    assert (row.status, row.answer) == (Status.FAILED, "exit status -9: began")
    assert time.monotonic() - begin < 60
    alive.unlink()
    time.sleep(0.5)
    assert not alive.exists()
    assert "began" in (tmp_path / "out/check.log").read_text()


@pytest.mark.parametrize(
    ("is_known", "reason", "status"),
    [
        (False, "RuntimeError: TensorRT-RTX has no such GPU", Status.REFUSED),
        (True, "RuntimeError: TensorRT-RTX has no such layer", Status.FAILED),
        (False, "ImportError: no onnx", Status.FAILED),
    ],
)
def test_only_an_unknown_gpu_may_refuse_a_build(
    is_known: bool,
    reason: str,
    status: Status,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make_check(tmp_path)
    commands = Commands()
    commands.answer = 1, f"words\n{reason}\n"
    monkeypatch.setattr(made, "command", commands)
    built, own = made.find_engines(is_known)
    assert (built.status, own.status) == (Status.FAILED, status)
    assert reason in own.answer


@pytest.mark.usefixtures("tests")
@pytest.mark.parametrize(
    ("row", "can_compile", "on_gpu", "skipped"),
    [
        (None, True, {"test_engines.py", "test_compile.py"}, []),
        (
            None,
            False,
            {"test_engines.py"},
            ["simulated, compilation", "gpu, compilation"],
        ),
        (REFUSED_BUILD, True, {"test_engines.py"}, ["gpu, compilation"]),
        (REFUSED_PLANS, True, None, ["gpu"]),
    ],
)
def test_which_tests_run(
    row: Row | None,
    can_compile: bool,
    on_gpu: set[str] | None,
    skipped: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make_check(tmp_path, *([row] if row else []))
    made._can_compile = can_compile
    commands = Commands()
    monkeypatch.setattr(made, "command", commands)
    rows = list(made.run_pytests())
    assert commands.files.get("gpu") == on_gpu
    assert ("test_compile.py" in commands.files["simulated"]) == can_compile
    assert commands.plans == str(tmp_path / "plans/relu")
    assert [r.question for r in rows if r.status is Status.SKIPPED] == [
        f"pytest suite on {what}" for what in skipped
    ]


@pytest.mark.usefixtures("tests")
def test_without_engines_no_tests_run_on_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_check(tmp_path)
    made._plans = None
    monkeypatch.setattr(made, "command", Commands())
    *_, last = made.run_pytests()
    assert (last.status, last.answer) == (Status.SKIPPED, "no engines")


def test_counts_pytests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tests/py/runtime"
    folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("")
    (folder / "test_a.py").write_text(
        "# runtime_testing\n"
        "import os\n"
        "import pytest\n"
        "def test_passes(): assert os.environ['TORCHTRT_TEST_DEVICE'] == 'gpu'\n"
        "def test_passes_too(): pass\n"
        "def test_is_skipped(): pytest.skip('no GPU')\n"
    )
    monkeypatch.setattr(check, "_ROOT", tmp_path)
    made = make_check(tmp_path)
    (row,) = made.run_pytests_on("gpu", "")
    assert (row.status, row.answer) == (Status.PASSED, "2 passed, 1 skipped")
    (folder / "test_b.py").write_text("import runtime_testing_of_no_one\n")
    (row,) = made.run_pytests_on("gpu", "")
    assert row.status is Status.FAILED
    assert row.answer.endswith("; failures in tests/py/runtime/test_b.py")


def test_a_step_that_breaks_off_keeps_what_it_found() -> None:
    def rows() -> Iterator[Row]:
        yield Row("step", "first", Status.ANSWER, "yes")
        raise RuntimeError("the disk is full")

    first, last = guarded("step", "all", rows())
    assert first.answer == "yes"
    assert last.is_bad
    assert last.answer == "it broke off: RuntimeError: the disk is full"


def test_report(tmp_path: Path) -> None:
    rows = [
        Row("tests", "a | b", Status.PASSED, "of\ntwo lines", details={"n": [1]}),
        Row("gpu", "refused", Status.REFUSED, "its words"),
    ]
    report = Report(tmp_path, {"device": "some GPU"})
    for row in rows:
        report.add(row)
    *_, first, second = table(rows).splitlines()
    assert first == r"| tests | a \| b | passed | of two lines |  |"
    assert second == "| gpu | refused | refused | its words |  |"
    assert not rows[1].is_bad
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("device some GPU, ") and second in text
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["device"] == "some GPU"
    assert [row["status"] for row in found["rows"]] == ["passed", "refused"]
    assert found["rows"][0]["details"] == {"n": [1]}
