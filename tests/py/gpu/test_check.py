"""The steps of check.py, and what it makes of the programs that it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.util.simulation import supported_gpu
from tools.gpu import check
from tools.gpu.check import Check, parse
from tools.gpu.prerequisites import Machine
from tools.gpu.report import Report, Row, Status, guarded

REFUSED = Row("output equality", "runs", Status.REFUSED, "no such capability")


def make_check(folder: Path) -> Check:
    arguments = parse([str(folder)])
    return Check(arguments, Machine(), Report(folder, {}), folder)


@pytest.fixture
def tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with files of tests, and a GPU that TensorRT-RTX names."""
    monkeypatch.setattr(check, "_ROOT", tmp_path)
    monkeypatch.setattr(supported_gpu, "supported_gpu", lambda: "a GPU")
    (tmp_path / "pyproject.toml").write_text("")
    folder = tmp_path / "tests/py"
    for name, text in (
        ("compile/test_compile.py", "def test_passes(): pass"),
        (
            "runtime/test_engines.py",
            "# runtime_testing\n"
            "import os\n"
            "import pytest\n"
            "def test_passes(): assert os.environ['TORCHTRT_TEST_DEVICE'] == 'gpu'\n"
            "def test_passes_too(): assert os.environ['TORCHTRT_TEST_PLANS']\n"
            "def test_is_skipped(): pytest.skip('no GPU')\n",
        ),
        ("runtime/test_broken.py", "import runtime_testing_of_no_one"),
        ("runtime/test_fleet.py", "import runtime_testing, fleet_testing"),
        ("runtime/test_files.py", "import os"),
        ("gpu/test_check.py", "runtime_testing"),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_paths_are_those_of_where_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--pack", "p", "--headers", "h", "--foreign-cache", "c"]
    arguments = vars(parse(["o", *options]))
    assert arguments["foreign_cache"] == [tmp_path / "c"]
    for name in ("out", "pack", "headers"):
        assert arguments[name] == tmp_path / name[0]


def test_a_command_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_TIMEOUT", 5)
    begin = time.monotonic()
    alive = tmp_path / "alive"
    program = f"(while sleep 0.1; do touch '{alive}'; done) & echo began; wait"
    row = make_check(tmp_path).command("step", "ends", ["sh", "-c", program])
    assert (row.status, row.answer) == (Status.FAILED, "exit status -9: began")
    assert time.monotonic() - begin < 60
    alive.unlink()
    time.sleep(0.5)
    assert not alive.exists()
    assert "began" in (tmp_path / "check.log").read_text()


def test_runs_the_tests_that_run_engines(tests: Path, tmp_path: Path) -> None:
    rows = {Path(row.question).name: row for row in make_check(tmp_path).run_pytests()}
    assert set(rows) == {"test_engines.py", "test_broken.py", "test_compile.py"}
    assert rows["test_compile.py"].status is Status.PASSED
    assert rows["test_engines.py"].status is Status.PASSED
    assert rows["test_engines.py"].answer.startswith("2 passed, 1 skipped in ")
    assert rows["test_broken.py"].answer.startswith("exit status 2: 1 error in ")


def test_compiles_only_for_a_gpu_that_tensorrt_rtx_names(
    tests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supported_gpu, "supported_gpu", lambda: None)
    (tests / "runtime/test_broken.py").unlink()
    skipped, run = make_check(tmp_path).run_pytests()
    assert (skipped.question, skipped.status) == (check._COMPILING, Status.SKIPPED)
    assert Path(run.question).name == "test_engines.py"


def test_no_tests_run_on_a_gpu_that_tensorrt_rtx_refuses(
    tests: Path, tmp_path: Path
) -> None:
    made = make_check(tmp_path)
    made.report.add(REFUSED)
    (row,) = made.run_pytests()
    assert row.status is Status.SKIPPED


def test_a_step_that_breaks_off_keeps_what_it_found() -> None:
    def rows() -> Iterator[Row]:
        yield Row("step", "first", Status.ANSWER, "yes")
        raise RuntimeError("the disk is full")

    first, last = guarded("step", "all", rows())
    assert first.answer == "yes"
    assert last.is_bad
    assert last.answer == "it broke off: RuntimeError: the disk is full"


def test_report(tmp_path: Path) -> None:
    report = Report(tmp_path, {"device": "some GPU"})
    report.add(Row("tests", "a | b", Status.PASSED, "of\ntwo lines"))
    report.add(REFUSED)
    assert not REFUSED.is_bad
    *_, first, second = report.table().splitlines()
    assert first == r"| tests | a \| b | passed | of two lines |  |"
    assert second == "| output equality | runs | refused | no such capability |  |"
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("device some GPU, ") and second in text
