"""The fenced code blocks of a Markdown document."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block. `line` is the number of its first line of text, counted from 1."""

    path: Path
    language: str
    text: str
    line: int
    reason_not_to_run: str | None = None

    @property
    def place(self) -> str:
        return f"{self.path.name}:{self.line}"


def read_blocks(path: Path) -> list[Block]:
    """All blocks of the document, in order.

    A comment `<!-- not run: reason -->` on the line before a block becomes that block's reason.

    Raises:
        ValueError: A block has no language or no end, or a comment has no block.
    """
    blocks: list[Block] = []
    lines = path.read_text().splitlines()
    reason = None
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if line.lstrip().startswith("```"):
            language = line.strip("`")
            if not re.fullmatch("[a-z]+", language):
                raise ValueError(f"{path.name}:{number}: {line!r} has no language")
            if "```" not in lines[number:]:
                raise ValueError(f"{path.name}:{number}: the block has no end")
            end = lines.index("```", number)
            text = "\n".join(lines[number:end]) + "\n"
            blocks.append(Block(path, language, text, number + 1, reason))
            reason, number = None, end + 1
        elif reason is not None:
            raise ValueError(f"{path.name}:{number}: no block follows the comment")
        elif match := _NOT_RUN.fullmatch(line):
            reason = match[1]
    if reason is not None:
        raise ValueError(f"{path.name}:{number}: no block follows the comment")
    return blocks


def run_python(block: Block, namespace: dict[str, object]) -> None:
    """Runs the block in `namespace`. A traceback shows the document's lines."""
    source = "\n" * (block.line - 1) + block.text
    exec(compile(source, block.path, "exec"), namespace)
