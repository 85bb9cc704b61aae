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
    packed = tmp_path / "packed"
    for folder in (packed / "packages/filelock", tmp_path / "libs"):
        folder.mkdir(parents=True)
        (folder / "file").write_text(folder.name)
    (packed / "packages/tensorrt_rtx_libs").symlink_to(tmp_path / "libs")
    write(tmp_path / "pack.tar.xz", packed)

    folder = tmp_path / "unpacked"
    (folder / "of an earlier pack").mkdir(parents=True)
    unpack(tmp_path / "pack.tar.xz", folder)
    packages = folder / "packages"
    assert list(folder.iterdir()) == [packages]
    assert (packages / "filelock/file").read_text() == "filelock"
    assert (packages / "tensorrt_rtx_libs/file").read_text() == "libs"
    assert not (packages / "tensorrt_rtx_libs").is_symlink()
    assert sys.path[0] == str(packages)
    assert os.environ["PYTHONPATH"] == f"{packages}{os.pathsep}before"
