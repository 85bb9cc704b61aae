"""A pack is whole, and what check.sh unpacks of it is found."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tools.gpu.check.check import unpack
from tools.gpu.plans.pack import write_pack


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    folder = tmp_path / "staged"
    (folder / "packages/some_package").mkdir(parents=True)
    (folder / "packages/some_package/__init__.py").write_text("x = 1\n")
    (folder / "include").mkdir()
    (folder / "include/NvInferVersion.h").write_text("header\n")
    path = tmp_path / "pack.tar.xz"
    write_pack(folder, path)
    assert [entry.name for entry in tmp_path.glob("pack*")] == ["pack.tar.xz"]
    return path


@pytest.fixture(autouse=True)
def same_path_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "before")


def test_unpacks_what_was_packed(pack: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    unpack(pack, folder)
    assert (folder / "include/NvInferVersion.h").read_text() == "header\n"
    assert sys.path[0] == str(folder / "packages")
    assert os.environ["PYTHONPATH"] == f"{folder}/packages{os.pathsep}before"


def test_unpacks_once_and_again_when_the_pack_changed(
    pack: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "unpacked"
    unpack(pack, folder)
    header = folder / "include/NvInferVersion.h"
    header.write_text("changed\n")
    unpack(pack, folder)
    assert header.read_text() == "changed\n"
    os.utime(pack, ns=(1, 1))
    unpack(pack, folder)
    assert header.read_text() == "header\n"
