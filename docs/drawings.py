"""Draws the pictures of docs/concepts.md, as SVG.

    ./bazelw run //docs:drawings -- DIR

Each is 360 units wide, about the width of a phone, so that its text is readable there.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH = 360
LINE = 15  # from one line of text to the next
GREY, BLUE, RED, AMBER = "#eceff1", "#cfe3f5", "#f6cfc4", "#f7e3ac"
INK = "#263238"

LOCKS = [
    (BLUE, "X.lock, shared"),
    (RED, "X.lock, exclusive"),
    (AMBER, "X.merge.lock"),
    (GREY, "no lock"),
]


class Drawing:
    def __init__(self) -> None:
        self._elements: list[str] = []

    def text(self, x: float, y: float, words: str, anchor: str = "middle") -> None:
        self._elements.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def box(
        self, x: float, y: float, width: float, color: str, lines: Sequence[str]
    ) -> float:
        """Returns where it ends."""
        height = LINE * len(lines) + 10
        self.bar(x, y, width, height, color)
        for i, words in enumerate(lines):
            self.text(x + width / 2, y + 17 + LINE * i, words)
        return y + height

    def bar(self, x: float, y: float, width: float, height: float, color: str) -> None:
        self._elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" '
            f'fill="{color}" stroke="{INK}"/>'
        )

    def arrow(self, *points: tuple[float, float]) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._elements.append(
            f'<polyline points="{path}" fill="none" stroke="{INK}" '
            'marker-end="url(#head)"/>'
        )

    def legend(self, y: float) -> float:
        for i, (color, words) in enumerate(LOCKS):
            x, row = 12 + 180 * (i % 2), y + 20 * (i // 2)
            self.bar(x, row, 14, 14, color)
            self.text(x + 21, row + 12, words, "start")
        return y + 40

    def svg(self, height: float) -> str:
        head = "M0,0 L8,4 L0,8 z"
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
                f'viewBox="0 0 {WIDTH} {height:g}" font-family="sans-serif" font-size="12.5" '
                f'fill="{INK}">',
                '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="8" refY="4" '
                f'orient="auto"><path d="{head}"/></marker></defs>',
                f'<rect width="{WIDTH}" height="{height:g}" rx="6" fill="#ffffff"/>',
                *self._elements,
                "</svg>\n",
            ]
        )


def locks() -> str:
    """Three processes, from left to right; time goes down."""
    drawing = Drawing()
    top = drawing.legend(12) + 8
    width, gap = 106, 9
    # By process: from which row to which, the colour, and what it does.
    steps = [
        [
            (0, 1, BLUE, ["reads X"]),
            (1, 3, GREY, ["runs, compiles", "kernels"]),
            (3, 4, RED, ["X is as read:", "writes X"]),
        ],
        [
            (0, 1, BLUE, ["reads X"]),
            (1, 4, GREY, ["runs, compiles", "kernels"]),
            (4, 5, RED, ["X has changed:", "writes nothing"]),
            (5, 6, BLUE, ["reads X and", "C's offer"]),
            (6, 7, AMBER, ["merges"]),
            (7, 8, RED, ["writes X"]),
        ],
        [
            (0, 1, BLUE, ["reads X"]),
            (1, 5, GREY, ["runs, compiles", "kernels"]),
            (5, 8, GREY, ["leaves an offer,", "waits for", "X.merge.lock"]),
            (8, 9, AMBER, ["finds its offer", "merged, ends"]),
        ],
    ]
    row = 44
    drawing_bottom = top + 24 + 9 * row
    # B has both locks while it reads and writes.
    drawing.bar(2 * gap + width, top + 24 + 5 * row, 10, 3 * row - 4, AMBER)
    for process, (name, column) in enumerate(zip("ABC", steps, strict=True)):
        x = gap + process * (width + gap)
        drawing.text(x + width / 2, top + 12, f"process {name}")
        for first, last, color, lines in column:
            y = top + 24 + first * row
            height = (last - first) * row - 4
            inset = 12 if process == 1 and first >= 5 else 0
            drawing.bar(x + inset, y, width - inset, height, color)
            middle = y + height / 2 + 4.5 - LINE * (len(lines) - 1) / 2
            for i, words in enumerate(lines):
                drawing.text(x + inset + (width - inset) / 2, middle + LINE * i, words)
    return drawing.svg(drawing_bottom + 6)


def save() -> str:
    drawing = Drawing()
    y = drawing.legend(12) + 10
    left, width = 32, 212
    side = left + width + 14
    # The colour, what happens, and how the save may end there.
    steps: list[tuple[str, list[str], list[str]]] = [
        (GREY, ["Serialize the kernels"], ["none are new:", "done"]),
        (RED, ["Is X as it was last read?", "Then write X"], ["written:", "done"]),
        (
            GREY,
            ["Leave an offer, wait for", "X.merge.lock"],
            ["others wrote", "it: done"],
        ),
        (BLUE, ["Read X and the offers"], []),
        (
            AMBER,
            ["Merge them with its own,", "without X.lock"],
            ["nothing to", "add: done"],
        ),
        (
            RED,
            ["Is X still as read? Then", "write X, remove the offers"],
            ["written:", "done"],
        ),
    ]
    tops = []
    for i, (color, lines, end) in enumerate(steps):
        tops.append(y)
        bottom = drawing.box(left, y, width, color, lines)
        middle = (y + bottom) / 2
        if end:
            drawing.arrow((left + width, middle), (side, middle))
            for j, words in enumerate(end):
                offset = 4.5 + LINE * (j - (len(end) - 1) / 2)
                drawing.text(side + 5, middle + offset, words, "start")
        y = bottom
        if i + 1 < len(steps):
            drawing.arrow((left + width / 2, y), (left + width / 2, y + 20))
            y += 20
    again = tops[3] + 12
    drawing.arrow(
        (left + 30, y), (left + 30, y + 12), (14, y + 12), (14, again), (left, again)
    )
    drawing.text(left + 38, y + 17, "if not, again, at most 8 times", "start")
    y += 48
    drawing.text(left, y, "To write X:", "start")
    y += 10
    for words in (
        "write a temporary file beside X",
        "fsync it",
        "rename it to X",
        "fsync the directory",
    ):
        bottom = drawing.box(left, y, width, RED, [words])
        y = bottom + 4
    return drawing.svg(y + 6)


def states() -> str:
    drawing = Drawing()
    left, width = 20, 130
    rows = [
        (GREY, ["pending, empty"], "load, or bytes from the user"),
        (GREY, ["pending, with bytes"], "first inference of an engine"),
        (GREY, ["live, saved"], "an inference compiles"),
        (GREY, ["live, with", "new kernels"], ""),
    ]
    y: float = 14
    tops, bottoms = [], []
    for color, lines, _ in rows:
        tops.append(y)
        y = drawing.box(left, y, width, color, lines)
        bottoms.append(y)
        y += 42
    x = left + width / 2
    for i in range(3):
        drawing.arrow((x, bottoms[i]), (x, tops[i + 1]))
        drawing.text(x + 10, bottoms[i] + 25, rows[i][2], "start")
    right = left + width
    low, high = (tops[3] + bottoms[3]) / 2, (tops[2] + bottoms[2]) / 2
    far = right + 90
    drawing.arrow((right, low), (far, low), (far, high), (right, high))
    for i, words in enumerate(("a save or", "checkpoint")):
        drawing.text(far + 8, (low + high) / 2 + LINE * i, words, "start")
    first = (tops[0] + bottoms[0]) / 2
    drawing.text(right + 32, first + 4.5, "a child of fork() starts here", "start")
    drawing.arrow((right + 28, first), (right, first))
    bottom = bottoms[3]
    for i, words in enumerate(
        (
            "Bytes that TensorRT-RTX rejects are dropped with a",
            "warning: the cache is then live and has no kernels.",
        )
    ):
        drawing.text(left, bottom + 28 + LINE * i, words, "start")
    return drawing.svg(bottom + 28 + LINE + 12)


DRAWINGS = {"locks.svg": locks, "save.svg": save, "states.svg": states}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", metavar="DIR", type=Path)
    # `bazel run` starts programs elsewhere than where it was started.
    started_in = os.environ.get("BUILD_WORKING_DIRECTORY", "")
    folder = Path(started_in, parser.parse_args().dir)
    for name, draw in DRAWINGS.items():
        (folder / name).write_text(draw())


if __name__ == "__main__":
    main()
