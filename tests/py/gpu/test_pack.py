"""A pack is whole, and what check.sh unpacks of it is found."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tools.gpu.check.check import unpack
from tools.gpu.plans.pack import write_pack


def test_unpacks_what_was_packed_once_until_the_pack_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "before")
    staged = tmp_path / "staged"
    (staged / "packages").mkdir(parents=True)
    (staged / "include").mkdir()
    (staged / "include/NvInferVersion.h").write_text("header\n")
    pack = tmp_path / "pack.tar.xz"
    write_pack(staged, pack)
    assert [entry.name for entry in tmp_path.glob("pack*")] == ["pack.tar.xz"]

    folder = tmp_path / "unpacked"
    unpack(pack, folder)
    header = folder / "include/NvInferVersion.h"
    assert header.read_text() == "header\n"
    assert sys.path[0] == str(folder / "packages")
    assert os.environ["PYTHONPATH"] == f"{folder}/packages{os.pathsep}before"

    header.write_text("changed\n")
    unpack(pack, folder)
    assert header.read_text() == "changed\n"
    os.utime(pack, ns=(1, 1))
    unpack(pack, folder)
    assert header.read_text() == "header\n"
