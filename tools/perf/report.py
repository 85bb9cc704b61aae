"""The report of the benchmarks in Python, in the form of tools/perf/Report.h."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """A measured figure, as a ratio to a baseline of the same run."""

    name: str
    unit: str  # of `baseline` and `measured`
    baseline: float
    measured: float
    limit: float | None = None  # of the ratio; None: there is no target

    @property
    def ratio(self) -> float:
        return self.measured / self.baseline

    @property
    def target(self) -> str | None:
        return None if self.limit is None else f"<= {self.limit:g}"

    @property
    def is_reached(self) -> bool | None:
        return None if self.limit is None else self.ratio <= self.limit


def print_rows(rows: Sequence[Row]) -> None:
    width = max(44, *(len(row.name) for row in rows))
    print(
        f"{'':{width}} {'baseline':>12} {'measured':>12} {'unit':5} {'ratio':>8}   target"
    )
    for row in rows:
        verdict = {None: "", True: " reached", False: " MISSED"}[row.is_reached]
        print(
            f"{row.name:{width}} {row.baseline:12.3f} {row.measured:12.3f} {row.unit:5} "
            f"{row.ratio:8.3f}   {row.target or ''}{verdict}".rstrip()
        )


def write_json(rows: Sequence[Row], path: Path) -> None:
    report = [
        {
            "name": row.name,
            "unit": row.unit,
            "baseline": row.baseline,
            "measured": row.measured,
            "ratio": row.ratio,
            "target": row.target,
            "reached": row.is_reached,
        }
        for row in rows
    ]
    path.write_text(json.dumps(report, indent=2) + "\n")


def typed_path(text: str) -> Path:
    """Returns the path in a command-line argument.

    Under `bazel run` a relative path starts from the directory where the command was typed.
    """
    return Path(os.environ.get("BUILD_WORKING_DIRECTORY", ".")) / text
