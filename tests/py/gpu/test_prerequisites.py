"""What check.sh says before it builds anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.gpu.prerequisites import look

CHECK = Path(__file__).parents[3] / "tools/gpu/check.sh"


def check(*words: str | Path, python: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CHECK, *words],
        env={**os.environ, "PYTHON": python},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_names_what_is_missing_a_line_each_and_runs_nothing(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    out = tmp_path / "out"
    done = check(out, "--work", tmp_path / "work", python=str(bare))
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("check.sh: missing: ") for line in lines)
    for wanted in ("torch for ", "filelock for ", "pytest for ", "NvInfer.h: "):
        assert len([line for line in lines if wanted in line]) == 1, (wanted, lines)
    assert list(out.iterdir()) == []


def test_names_a_python_that_is_not_there(tmp_path: Path) -> None:
    done = check(tmp_path / "out", python="/nowhere/python3")
    assert done.returncode == 2
    assert "/nowhere/python3 is not found" in done.stderr
    assert not (tmp_path / "out").exists()


def test_names_a_python_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 && exit\nexit 1\n')
    old.chmod(0o755)
    done = check(tmp_path / "out", python=str(old))
    assert done.returncode == 2
    assert f"{old} is Python 3.9.2" in done.stderr


def test_finds_what_this_environment_has(tmp_path: Path) -> None:
    (tmp_path / "NvInfer.h").touch()
    machine = look(tmp_path, needs_gpu=False)
    assert machine.missing == []
    assert machine.folders["TENSORRT_RTX_INCLUDE"] == tmp_path
    assert machine.folders["TORCH_DIR"].samefile(Path(torch.__file__).parent)
    assert machine.versions["torch"] == torch.__version__


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_is_one_line(tmp_path: Path) -> None:
    without = look(tmp_path, needs_gpu=False).missing
    line = look(tmp_path, needs_gpu=True).missing[-1]
    assert "torch.cuda.is_available() is false" in line
    assert "--without-gpu" in line
    assert line not in without
