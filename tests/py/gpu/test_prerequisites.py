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


def check(
    out: Path, python: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CHECK, out],
        env={**os.environ, "PYTHON": python, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_names_what_is_missing_a_line_each_and_runs_nothing(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    out = tmp_path / "out"
    done = check(out, python=str(bare), HOME=str(tmp_path))
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
    machine = look(tmp_path, builds_engines=True)
    assert [line for line in machine.missing if "GPU" not in line] == []
    assert machine.folders["TENSORRT_RTX_INCLUDE"] == tmp_path
    assert machine.folders["TORCH_DIR"].samefile(Path(torch.__file__).parent)
    assert machine.versions["torch"] == torch.__version__


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_is_one_line(tmp_path: Path) -> None:
    line = look(tmp_path, builds_engines=False).missing[-1]
    assert line.startswith("an NVIDIA GPU: torch.cuda.is_available() is false")
