"""What the benchmarks share: options, and the report as a table, as JSON and as a picture."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

MEASURED, BASELINE = "#1565c0", "#b0bec5"  # colors of bars


@dataclass(frozen=True)
class Row:
    """A measured figure beside a baseline of the same run. The smaller, the better."""

    what: str  # Rows about the same thing share a part of the picture.
    subject: str  # of which `measured` is the figure
    beside: str  # of which `baseline` is the figure
    unit: str
    baseline: float
    measured: float
    limit: float | None = None  # of the ratio; None: there is no target

    @property
    def name(self) -> str:
        return f"{self.what}: {self.subject} to {self.beside}"

    @property
    def ratio(self) -> float:
        return self.measured / self.baseline

    @property
    def target(self) -> str | None:
        return None if self.limit is None else f"<= {self.limit:.3g}"

    @property
    def is_reached(self) -> bool | None:
        return None if self.limit is None else self.ratio <= self.limit


def argument_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", type=_file, metavar="FILE", help="write the figures to this file"
    )
    parser.add_argument(
        "--plot", type=_file, metavar="FILE", help="draw the figures as SVG"
    )
    parser.add_argument(
        "--dir",
        type=_directory,
        default=Path(tempfile.gettempdir()),
        metavar="DIR",
        help="where the measured files go (%(default)s)",
    )
    return parser


def at_least(least: int) -> Callable[[str], int]:
    """Returns a type of command-line arguments."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(
                f"{text} is too small, expected {least} or more"
            )
        return int(text)

    return number


def _typed_path(text: str) -> Path:
    """Under `bazel run` a relative path starts from the directory where the command was typed."""
    return Path(os.environ.get("BUILD_WORKING_DIRECTORY", ".")) / text


def _directory(text: str) -> Path:
    path = _typed_path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"'{path}' is not a directory")
    return path


def _file(text: str) -> Path:
    path = _typed_path(text)
    _directory(str(path.parent))
    return path


def measured_by(variable: str, directory: str) -> dict[str, Any]:
    """Runs the program that an environment variable names. Returns the JSON that it prints."""
    program = [os.environ[variable], directory]
    output = subprocess.run(program, check=True, stdout=subprocess.PIPE).stdout
    measured: dict[str, Any] = json.loads(output)
    return measured


def report(title: str, rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """Prints the rows, and writes them as the arguments of argument_parser() say."""
    _print_rows(rows)
    if arguments.json is not None:
        _write_json(rows, arguments.json)
    if arguments.plot is not None:
        draw(title, rows, arguments.dir, arguments.plot)


def _print_rows(rows: Sequence[Row]) -> None:
    width = max(len(row.name) for row in rows)
    print(
        f"{'':{width}} {'baseline':>12} {'measured':>12} {'unit':5} {'ratio':>8}   target"
    )
    for row in rows:
        verdict = {None: "", True: " reached", False: " MISSED"}[row.is_reached]
        print(
            f"{row.name:{width}} {row.baseline:12.3f} {row.measured:12.3f} {row.unit:5} "
            f"{row.ratio:8.3f}   {row.target or ''}{verdict}".rstrip()
        )


def _write_json(rows: Sequence[Row], path: Path) -> None:
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


def draw(title: str, rows: Sequence[Row], directory: Path, path: Path) -> None:
    """Draws what was measured in that directory."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(row.what, []).append(row)
    # Rows may share what they measure, or their baseline.
    bars = [
        dict.fromkeys(
            [(row.subject, row.measured, MEASURED) for row in its_rows]
            + [(row.beside, row.baseline, BASELINE) for row in its_rows]
        )
        for its_rows in panels.values()
    ]
    heights = [len(its_bars) for its_bars in bars]
    style = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}
    with matplotlib.rc_context(style):
        figure, all_axes = pyplot.subplots(
            nrows=len(panels),
            squeeze=False,
            figsize=(4.5, 0.9 + 0.3 * len(panels) + 0.2 * sum(heights)),
            height_ratios=heights,
            layout="constrained",
        )
        for axes, (what, its_rows), its_bars in zip(
            all_axes[:, 0], panels.items(), bars, strict=True
        ):
            names, figures, colors = zip(*its_bars, strict=True)
            drawn = axes.barh(range(len(names)), figures, color=colors)
            unit = its_rows[0].unit
            texts = [f"{_short(figure)} {unit}".rstrip() for figure in figures]
            axes.bar_label(drawn, texts, padding=3)
            axes.set_yticks(range(len(names)), names)
            axes.tick_params(length=0)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_xticks([])
            axes.set_xlim(0, 1.4 * max(figures))
            axes.spines[["top", "right", "bottom"]].set_visible(False)
            axes.set_title(what, fontsize="medium", weight="bold", loc="left")
        figure.suptitle(f"{title}: shorter is better")
        figure.supxlabel(_caption(directory), fontsize="small")
        figure.savefig(path, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def _short(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def _caption(directory: Path) -> str:
    model = re.search(
        r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE
    )
    processor = model[1] if model else platform.machine()
    df = ["df", "--output=fstype", str(directory)]
    file_system = subprocess.run(
        df, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()[-1]
    cores = len(os.sched_getaffinity(0))
    return (
        "blue: measured, grey: its baselines in the same run\n"
        f"{processor}, {cores} cores\n"
        f"Linux {platform.release()}, {file_system}, {date.today()}"
    )
