"""Runs the gtest and the pytest suite outside Bazel, in parallel, and counts their test cases."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tools.gpu.check.prerequisites import ROOT
from tools.gpu.check.processes import run
from tools.gpu.report import Row, Status

TIMEOUT = 900  # seconds for one program or file of tests, against hanging alone

# Folders of tests/py, and why they are not run here.
NOT_HERE = {
    "docs": "documents are no matter of the machine",
    "gpu": "tests of this check itself",
    "tools": "development tools are no matter of the machine",
    "wheel": "needs the wheel, which Bazel builds",
}


@dataclass
class Outcome:
    """Of one program or file of tests.

    Attributes:
        broken: Why there are no counts, or not all; empty if there are.
        failures: The names of test cases.
    """

    name: str
    passed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    broken: str = ""


def python_tests() -> list[Path]:
    """The files of tests/py that are run here: whatever is not said not to be."""
    folder = ROOT / "tests/py"
    return sorted(
        file
        for file in folder.rglob("test_*.py")
        if file.relative_to(folder).parts[0] not in NOT_HERE
    )


def run_gtests(
    programs: Sequence[Path], work: Path, jobs: int, log: Callable[[str], object]
) -> Row:
    """The gtest suite as one row."""
    begin = time.perf_counter()

    def outcome_of(program: Path) -> Outcome:
        report = work / f"{program.name}.json"
        report.unlink(missing_ok=True)
        broken = _run(
            [str(program), f"--gtest_output=json:{report}"], dict(os.environ), log
        )
        return _of_gtest(program.name, report, broken)

    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(outcome_of, programs))
    return _row("gtest suite", outcomes, time.perf_counter() - begin)


def run_pytests(
    title: str,
    environment: dict[str, str],
    files: Sequence[Path],
    work: Path,
    jobs: int,
    log: Callable[[str], object],
) -> Row:
    """Files of the pytest suite as one row, each file in a process."""
    begin = time.perf_counter()

    def outcome_of(file: Path) -> Outcome:
        name = str(file.relative_to(ROOT))
        report = work / f"{title}.{name}.xml".replace("/", ".").replace(" ", "_")
        report.unlink(missing_ok=True)
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)),
            *("-W", "default"),  # other versions of torch warn of other things
            *(f"--junitxml={report}", str(file)),
        ]
        return _of_pytest(name, report, _run(command, environment, log))

    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(outcome_of, files))
    return _row(title, outcomes, time.perf_counter() - begin)


def _run(
    command: list[str], environment: dict[str, str], log: Callable[[str], object]
) -> str:
    """Runs it into the log; how it broke off, empty for a status that a report explains."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        status = run(command, output, TIMEOUT, environment)
        output.seek(0)
        text = output.read().decode(errors="replace")
    ended = (
        f"not ended after {TIMEOUT} s" if status is None else f"exit status {status}"
    )
    seconds = time.perf_counter() - begin
    log(f"$ {' '.join(command)}\n{text}\n[{ended}, {seconds:.1f} s]\n")
    return "" if status in (0, 1) else ended


def _of_gtest(name: str, report: Path, broken: str) -> Outcome:
    outcome = Outcome(name, broken=broken)
    if not report.exists():
        outcome.broken = broken or "no report"
        return outcome
    for suite in json.loads(report.read_text())["testsuites"]:
        for case in suite["testsuite"]:
            if case["result"] == "SKIPPED":
                outcome.skipped += 1
            elif case.get("failures"):
                outcome.failures.append(f"{suite['name']}.{case['name']}")
            elif case["result"] == "COMPLETED":
                outcome.passed += 1
    return outcome


def _of_pytest(name: str, report: Path, broken: str) -> Outcome:
    outcome = Outcome(name, broken=broken)
    if not report.exists():
        outcome.broken = broken or "no report"
        return outcome
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failures.append(f"{Path(name).name}::{case.get('name')}")
        elif case.find("skipped") is not None:
            outcome.skipped += 1
        else:
            outcome.passed += 1
    return outcome


def _row(title: str, outcomes: list[Outcome], seconds: float) -> Row:
    passed = sum(outcome.passed for outcome in outcomes)
    skipped = sum(outcome.skipped for outcome in outcomes)
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    broken = [f"{o.name}: {o.broken}" for o in outcomes if o.broken]
    is_good = passed > 0 and not failures and not broken
    bad = [*failures, *broken]
    return Row(
        "tests",
        title,
        Status.PASSED if is_good else Status.FAILED,
        f"{passed} passed, {len(failures)} failed, {skipped} skipped"
        + (f", {len(broken)} broke off" if broken else "")
        + (f": {', '.join(bad[:3])}{', ...' * (len(bad) > 3)}" if bad else ""),
        f"{seconds:.0f} s",
        (
            f"{len(outcomes)} programs"
            if title == "gtest suite"
            else f"{len(outcomes)} files"
        ),
        {"failures": failures, "broken": broken},
    )
