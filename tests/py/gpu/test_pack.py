"""check.sh finds what is in a pack."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tools.gpu.check import unpack
from tools.gpu.pack import write


def test_unpacks_what_was_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "before")
    for name in ("packages/filelock", "libs", "headers"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(name)
    entries = {
        "packages": tmp_path / "packages",
        "packages/tensorrt_rtx_libs": tmp_path / "libs",
        "include": tmp_path / "headers",
    }
    write(tmp_path / "pack.tar.xz", entries)

    folder = tmp_path / "unpacked"
    (folder / "of an earlier pack").mkdir(parents=True)
    unpack(tmp_path / "pack.tar.xz", folder)
    assert {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    } == {
        "packages/filelock/file": "packages/filelock",
        "packages/tensorrt_rtx_libs/file": "libs",
        "include/file": "headers",
    }
    assert not (folder / "of an earlier pack").exists()
    assert sys.path[0] == str(folder / "packages")
    assert os.environ["PYTHONPATH"] == f"{folder}/packages{os.pathsep}before"
