"""Changes to a text at positions in it, and positions from `ast`, which also parses BUILD files."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from tools.upstream.errors import Problem


@dataclass(frozen=True)
class Edit:
    """`text`, with newlines as \\n, comes in the place of source[start:end]."""

    start: int
    end: int
    text: str


def apply(source: str, edits: list[Edit]) -> str:
    """Keeps all that no edit names. Of two edits at one place the first given comes first."""
    newline = "\r\n" if "\r\n" in source else "\n"
    pieces = []
    position = 0
    for edit in sorted(edits, key=lambda edit: edit.start):
        if edit.start < position:
            raise ValueError(f"edits overlap at {edit.start}")
        pieces += [source[position : edit.start], edit.text.replace("\n", newline)]
        position = edit.end
    return "".join([*pieces, source[position:]])


class Parsed:
    """A Python or Starlark source with the places of its nodes as indices into the text."""

    def __init__(self, source: str) -> None:
        self.source = source
        try:
            self.module = ast.parse(source)
        except SyntaxError as error:
            raise Problem(f"can't be parsed: {error}") from error
        self._lines = source.split("\n")
        self._line_starts = [0]
        for line in self._lines:
            self._line_starts.append(self._line_starts[-1] + len(line) + 1)

    def line_start(self, line: int) -> int:
        """Where the line, counted from 1, begins."""
        return min(self._line_starts[line - 1], len(self.source))

    def _index(self, line: int, utf8_column: int) -> int:
        prefix = self._lines[line - 1].encode()[:utf8_column]
        return self._line_starts[line - 1] + len(prefix.decode())

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self._index(node.lineno, node.col_offset)

    def end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self._index(node.end_lineno, node.end_col_offset)

    def text(self, node: ast.expr | ast.stmt) -> str:
        return self.source[self.start(node) : self.end(node)]

    def line_after(self, node: ast.expr | ast.stmt) -> int:
        """Where the line after the node's last begins."""
        assert node.end_lineno is not None
        return self.line_start(node.end_lineno + 1)

    def first_line(self, node: ast.stmt) -> int:
        """The line, counted from 1, of the node's first decorator or else its own."""
        decorators: list[ast.expr] = getattr(node, "decorator_list", [])
        return min([node.lineno, *(decorator.lineno for decorator in decorators)])

    def first_line_with_comments(self, node: ast.stmt) -> int:
        """first_line(), or that of the comment which stands right above it."""
        line = self.first_line(node)
        while line > 1 and self._lines[line - 2].startswith("#"):
            line -= 1
        return line
