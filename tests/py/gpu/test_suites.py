"""How results of test programs are counted, and reported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools.gpu.check import suites
from tools.gpu.check.suites import run_gtests, run_pytests
from tools.gpu.report import Row, Status, read_rows, table, write_json

_GTEST = """#!/bin/sh
file=${1#--gtest_output=json:}
cat > "$file" <<'END'
{"testsuites": [{"name": "LockTest", "testsuite": [
  {"name": "Passes", "result": "COMPLETED"},
  {"name": "IsSkipped", "result": "SKIPPED"}%s]}]}
END
exit %d
"""
_FAILURE = ', {"name": "Fails", "result": "COMPLETED", "failures": [{"failure": "1"}]}'


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def ignore(text: str) -> None:
    pass


def test_counts_gtests(tmp_path: Path) -> None:
    programs = [
        program(tmp_path / "test_a", _GTEST % ("", 0)),
        program(tmp_path / "test_b", _GTEST % (_FAILURE, 1)),
        program(tmp_path / "test_c", "#!/bin/sh\necho lost; kill -SEGV $$\n"),
    ]
    log: list[str] = []
    row = run_gtests(programs, tmp_path, 2, log.append)
    assert row.status is Status.FAILED
    assert row.answer == (
        "2 passed, 1 failed, 2 skipped, 1 broke off: LockTest.Fails, "
        "test_c: exit status -11"
    )
    assert any("lost" in text for text in log)
    assert run_gtests(programs[:1], tmp_path, 2, ignore).status is Status.PASSED


def test_no_gtest_at_all_is_no_success(tmp_path: Path) -> None:
    assert run_gtests([], tmp_path, 1, ignore).status is Status.FAILED


def test_a_program_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "TIMEOUT", 0.2)
    hanging = program(tmp_path / "test_a", "#!/bin/sh\nexec sleep 600\n")
    row = run_gtests([hanging], tmp_path, 1, ignore)
    assert "test_a: not ended after 0.2 s" in row.answer


def test_counts_pytests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tests/py/some"
    folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("")
    (folder / "test_a.py").write_text(
        "import os\n"
        "import pytest\n"
        "def test_passes(): assert os.environ['TORCHTRT_TEST_DEVICE'] == 'gpu'\n"
        "def test_fails(): assert 0\n"
        "def test_is_skipped(): pytest.skip('no GPU')\n"
    )
    (folder / "test_b.py").write_text("import nothing_of_that_name\n")
    monkeypatch.setattr(suites, "ROOT", tmp_path)
    environment = {**os.environ, "TORCHTRT_TEST_DEVICE": "gpu"}
    files = suites.python_tests()
    assert len(files) == 2
    row = run_pytests("pytest suite", environment, files, tmp_path, 2, ignore)
    assert row.status is Status.FAILED
    assert row.answer.startswith("1 passed, 2 failed, 1 skipped")
    assert "test_a.py::test_fails" in row.details["failures"]


def test_runs_every_folder_that_is_not_said_to_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("runtime/test_a.py", "new/deep/test_b.py", "wheel/test_c.py"):
        path = tmp_path / "tests/py" / name
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.setattr(suites, "ROOT", tmp_path)
    assert [f.name for f in suites.python_tests()] == ["test_b.py", "test_a.py"]


def test_report(tmp_path: Path) -> None:
    rows = [
        Row("tests", "a | b", Status.PASSED, "of\ntwo lines", details={"n": [1]}),
        Row("gpu", "refused", Status.REFUSED, "its words"),
    ]
    write_json(tmp_path / "rows.json", rows, device="some GPU")
    assert read_rows(tmp_path / "rows.json") == rows
    *_, first, second = table(rows).splitlines()
    assert first == r"| tests | a \| b | passed | of two lines |  |  |"
    assert not rows[1].is_bad
    assert second.startswith("| gpu | refused | refused |")
