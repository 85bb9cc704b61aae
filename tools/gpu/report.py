"""The results of a check on a GPU: rows of a table."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class Status(str, Enum):
    """How a row came out.

    Attributes:
        PASSED: A check held.
        FAILED: A check did not hold, or a step broke off.
        ANSWER: The answer to a question agrees with the design.
        CONTRADICTION: The design relies on another answer.
        REFUSED: TensorRT-RTX does not run on this GPU; the answer quotes it.
        SKIPPED: Nothing was tried; the answer says why.
    """

    PASSED = "passed"
    FAILED = "FAILED"
    ANSWER = "answer"
    CONTRADICTION = "CONTRADICTS THE DESIGN"
    REFUSED = "refused"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        step: The part of the check that it belongs to.
        figure: What was measured, with units; empty if nothing was.
    """

    step: str
    question: str
    status: Status
    answer: str
    figure: str = ""

    @property
    def is_bad(self) -> bool:
        return self.status in (Status.FAILED, Status.CONTRADICTION)


def checked(
    step: str, question: str, holds: bool, answer: str, figure: str = ""
) -> Row:
    """Returns the row of a check."""
    status = Status.PASSED if holds else Status.FAILED
    return Row(step, question, status, answer, figure)


def guarded(step: str, question: str, rows: Iterable[Row]) -> Iterator[Row]:
    """Yields the rows. If an error ends them, adds a row that reports it."""
    try:
        yield from rows
    except Exception as error:
        traceback.print_exc()
        answer = f"it broke off: {type(error).__name__}: {error}"
        yield checked(step, question, False, answer)


class Report:
    """The rows so far. After each row, the files in the folder are complete.

    Args:
        about: The subject of the rows, such as versions.
    """

    def __init__(self, folder: Path, about: dict[str, str]) -> None:
        self.rows: list[Row] = []
        self._folder = folder
        self._about = about
        self._begin = time.monotonic()
        (folder / "check.log").write_text("")

    def log(self, text: str) -> None:
        with (self._folder / "check.log").open("a") as file:
            file.write(f"{text}\n")

    def add(self, row: Row) -> None:
        self.rows.append(row)
        seconds = f"{time.monotonic() - self._begin:.0f} s"
        print(f"[{seconds}] {row.question}: {row.status.value}, {row.answer}")
        about = {**self._about, "time": seconds}
        heading = ", ".join(f"{name} {value}" for name, value in about.items())
        (self._folder / "results.md").write_text(f"{heading}\n\n{self.table()}\n")

    def table(self) -> str:
        """Returns the rows in Markdown."""
        lines = [["step", "question", "status", "answer", "figure"], ["---"] * 5]
        for row in self.rows:
            lines.append(
                [row.step, row.question, row.status.value, row.answer, row.figure]
            )
        return "\n".join(f"| {' | '.join(map(_cell, cells))} |" for cells in lines)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", r"\|")


def in_ms(seconds: float) -> str:
    """Returns a text such as "1.5 ms"."""
    return f"{seconds * 1e3:.1f} ms"
