"""tools/perf/report.py writes what its options ask for."""

from __future__ import annotations

import json
import platform
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools.perf.report import Row, argument_parser, at_least, draw, report

ROWS = [
    Row("acquire", "FileLock", "system calls", "µs", 2.5, 3.25, limit=1.5),
    Row("acquire", "FileLock", "filelock", "µs", 20, 3.25),
    Row("lost kernels", "checkpoints", "promised", "", 1234, 0, limit=0),
]


def texts_of(picture: Path) -> list[str]:
    elements = ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(element.itertext()) for element in elements]


def test_picture(tmp_path: Path) -> None:
    picture = tmp_path / "lock.svg"
    draw("File lock", ROWS, tmp_path, picture)
    texts = texts_of(picture)
    assert texts[:7] == [
        *("FileLock", "system calls", "filelock"),
        *("3.25 µs", "2.5 µs", "20 µs"),
        "acquire",
    ]
    assert texts[7:12] == ["checkpoints", "promised", "0", "1,234", "lost kernels"]
    caption = "\n".join(texts[12:])
    assert "File lock" in caption
    assert f"Linux {platform.release()}, " in caption
    assert str(date.today()) in caption


def test_picture_is_the_same_again(tmp_path: Path) -> None:
    pictures = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for picture in pictures:
        draw("File lock", ROWS, tmp_path, picture)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, picture = tmp_path / "lock.json", tmp_path / "lock.svg"
    options = [f"--json={figures}", f"--plot={picture}", f"--dir={tmp_path}"]
    report("File lock", ROWS, argument_parser("").parse_args(options))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == [
        "target",
        "reached",
        "0.163",
        "reached",
    ]
    assert json.loads(figures.read_text())[0] == {
        "name": "acquire: FileLock to system calls",
        "unit": "µs",
        "baseline": 2.5,
        "measured": 3.25,
        "ratio": 1.3,
        "target": "<= 1.5",
        "reached": True,
    }
    assert "acquire" in texts_of(picture)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--dir=/missing", "--dir: '/missing' is not a directory"),
        ("--plot=/missing/a.svg", "--plot: '/missing' is not a directory"),
        ("--turns=1", "--turns: 1 is too small, expected 2 or more"),
    ],
)
def test_wrong_options(
    option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argument_parser("")
    parser.add_argument("--turns", type=at_least(2))
    with pytest.raises(SystemExit):
        parser.parse_args([option])
    assert f"argument {message}\n" in capsys.readouterr().err
