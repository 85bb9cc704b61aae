"""What a check on a GPU found: rows, as a table and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any


class Status(str, Enum):
    """How a row came out.

    Attributes:
        PASSED: A check that held.
        FAILED: A check that did not, or a step that broke off.
        ANSWER: A question was answered, and the design is right with that answer.
        CONTRADICTION: A question was answered, and the design relies on another answer.
        REFUSED: TensorRT-RTX does not take this GPU; its own words are the answer.
        SKIPPED: It was not tried; the answer says why.
    """

    PASSED = "passed"
    FAILED = "FAILED"
    ANSWER = "answer"
    CONTRADICTION = "CONTRADICTS THE DESIGN"
    REFUSED = "refused"
    SKIPPED = "skipped"


BAD = frozenset({Status.FAILED, Status.CONTRADICTION})


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        step: Which part of the check it belongs to.
        question: What was asked, or checked.
        status: How it came out.
        answer: In a few words.
        figure: What was measured, with units; empty if nothing was.
        how: How it was found out.
        details: Whatever else belongs into the JSON.
    """

    step: str
    question: str
    status: Status
    answer: str
    figure: str = ""
    how: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_bad(self) -> bool:
        return self.status in BAD


def write_json(path: Path, rows: Iterable[Row], **about: Any) -> None:
    """Writes `about` and the rows, which `read_rows` reads."""
    document = {**about, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(document, indent=1) + "\n")


def read_rows(path: Path) -> list[Row]:
    document = json.loads(path.read_text())
    return [Row(**{**row, "status": Status(row["status"])}) for row in document["rows"]]


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table, for a terminal as for a page."""
    lines = [
        "| step | question | status | answer | figure | how |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [
            row.step,
            row.question,
            row.status.value,
            row.answer,
            row.figure,
            row.how,
        ]
        lines.append(f"| {' | '.join(_cell(text) for text in cells)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", r"\|").strip()


def in_ms(seconds: float) -> str:
    """Reads like "1.5 ms"."""
    return f"{seconds * 1e3:.1f} ms"
