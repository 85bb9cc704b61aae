"""What check.sh says before it builds anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.gpu.check.check import say_what_is_missing
from tools.gpu.check.prerequisites import Machine, Options, look

ROOT = Path(__file__).parents[3]
CHECK = ROOT / "tools/gpu/check.sh"


def check(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(CHECK), *words],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def make_headers(folder: Path, version: tuple[int, int, int]) -> Path:
    names = ("MAJOR", "MINOR", "PATCH")
    lines = [f"#define TRT_{n}_RTX {v}" for n, v in zip(names, version, strict=True)]
    folder.mkdir()
    (folder / "NvInferVersion.h").write_text("\n".join(lines))
    return folder


def test_names_what_is_missing_a_line_each_and_runs_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    for tool in ("bash", "dirname", "env"):
        (empty / tool).symlink_to(f"/usr/bin/{tool}")
    out = tmp_path / "out"
    done = check(
        str(out),
        "--without-gpu",
        *("--work", str(tmp_path / "work")),
        *("--headers", str(tmp_path / "no_headers")),
        PATH=str(empty),
        TENSORRT_RTX_HOME=str(tmp_path / "no_sdk"),
    )
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("check.sh: missing: ") for line in lines)
    for wanted in (
        f"TENSORRT_RTX_HOME={tmp_path / 'no_sdk'} has no lib/libtensorrt_rtx.so",
        "C++20 compiler",
        "cmake",
        "ninja or make",
    ):
        assert len([line for line in lines if wanted in line]) == 1, (wanted, lines)
    assert list(out.iterdir()) == []


def test_names_torch_where_it_is_missing(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    work = ["--work", str(tmp_path / "work")]
    done = check(str(tmp_path / "out"), "--without-gpu", *work, PYTHON=str(bare))
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("check.sh: missing: ") for line in lines)
    assert "torch 2.11 or newer" in lines[0]


def test_names_a_python_that_is_not_there(tmp_path: Path) -> None:
    done = check(str(tmp_path / "out"), PYTHON="/nowhere/python3")
    assert done.returncode == 2
    assert "there is no /nowhere/python3 (set PYTHON)" in done.stderr
    assert not (tmp_path / "out").exists()


def test_names_a_python_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 && exit\nexit 1\n')
    old.chmod(0o755)
    done = check(str(tmp_path / "out"), PYTHON=str(old))
    assert done.returncode == 2
    assert f"{old} is Python 3.9.2" in done.stderr


def test_headers_must_be_of_the_python_package_s_version(tmp_path: Path) -> None:
    machine = look(Options(headers=make_headers(tmp_path / "a", (1, 5, 0))))
    assert machine.tensorrt_rtx_include is None
    (line,) = [line for line in machine.missing if "headers" in line]
    assert machine.versions["tensorrt_rtx"] in line and "1.5.0" in line


def test_finds_an_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = make_headers(tmp_path / "include", (1, 6, 1))
    (tmp_path / "lib").mkdir()
    library = tmp_path / "lib/libtensorrt_rtx.so"
    library.touch()
    monkeypatch.setenv("TENSORRT_RTX_HOME", str(tmp_path))
    machine = look(Options())
    assert machine.tensorrt_rtx_library == library
    assert machine.tensorrt_rtx_include == headers


def test_an_sdk_must_be_of_the_python_package_s_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = make_headers(tmp_path / "include", (1, 7, 0))
    monkeypatch.setenv("TENSORRT_RTX_HOME", str(tmp_path))
    machine = look(Options())
    assert machine.tensorrt_rtx_include is None
    (line,) = [line for line in machine.missing if "headers" in line]
    assert line.endswith(f"Python package's version; {headers} has those of 1.7.0")


def test_finds_what_this_environment_has(tmp_path: Path) -> None:
    machine = look(Options(headers=make_headers(tmp_path / "a", (1, 6, 1))))
    assert machine.tensorrt_rtx_include == tmp_path / "a"
    assert machine.torch is not None and machine.cuda_include is not None
    assert machine.tensorrt_rtx_library is not None
    assert machine.has_pytest and machine.can_build_plans


def test_no_gpu_is_one_line() -> None:
    said: list[str] = []
    machine = Machine(no_gpu="torch.cuda.is_available() is false")
    assert say_what_is_missing(machine, without_gpu=False, say=said.append)
    assert said == [
        "check.sh: no NVIDIA GPU: torch.cuda.is_available() is false; --without-gpu runs what "
        "needs none"
    ]
    assert not say_what_is_missing(machine, without_gpu=True, say=said.append)


def test_what_is_left_out_is_said_but_stops_nothing() -> None:
    said: list[str] = []
    machine = Machine(skipped=["the gtest suite: no googletest"])
    assert not say_what_is_missing(machine, without_gpu=False, say=said.append)
    assert said == ["check.sh: left out: the gtest suite: no googletest"]


@pytest.mark.skipif(bool(look(Options()).gpu), reason="this machine has a GPU")
def test_without_a_gpu_look_says_so() -> None:
    assert "torch.cuda.is_available() is false" in look(Options()).no_gpu
