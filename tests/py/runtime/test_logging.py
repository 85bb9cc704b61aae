"""torch_tensorrt.logging sets the log level of both runtimes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from tests.py.runtime.runtime_cache_testing import Log, MakeHandle
from torch_tensorrt.logging import (
    Level,
    debug,
    errors,
    get_level,
    graphs,
    info,
    internal_errors,
    set_level,
    warnings,
)

LOGGER = logging.getLogger("torch_tensorrt")


@pytest.fixture(autouse=True)
def _the_level_is_set_back() -> Iterator[None]:
    with warnings():
        yield


def levels() -> tuple[Level, int, int]:
    """The level that was set, and the resulting levels of the C++ and the Python runtime."""
    return (
        get_level(),
        torch.ops.tensorrt.get_logging_level(),
        LOGGER.level,
    )


@pytest.mark.parametrize(
    ("level", "python_level"),
    [
        (Level.INTERNAL_ERROR, logging.CRITICAL),
        (Level.ERROR, logging.ERROR),
        (Level.WARNING, logging.WARNING),
        (Level.INFO, logging.INFO),
        (Level.DEBUG, logging.DEBUG),
        (Level.GRAPH, logging.DEBUG - 1),
    ],
)
def test_a_level_is_set_by_itself_its_number_or_its_name(
    level: Level, python_level: int
) -> None:
    for same in (level, int(level), str(int(level)), level.name, level.name.lower()):
        set_level("error" if level != Level.ERROR else "info")
        set_level(same)
        assert levels() == (level, level, python_level)


@pytest.mark.parametrize("unknown", ["loud", "", -1, 6, logging.INFO, None])
def test_an_unknown_level_is_told_and_changes_nothing(unknown: str | int) -> None:
    with pytest.raises(ValueError, match=r"warning \(2\), info \(3\).* or graph \(5\)"):
        set_level(unknown)
    assert levels() == (Level.WARNING, Level.WARNING, logging.WARNING)


@pytest.mark.parametrize(
    ("block", "level"),
    [
        (internal_errors, Level.INTERNAL_ERROR),
        (errors, Level.ERROR),
        (warnings, Level.WARNING),
        (info, Level.INFO),
        (debug, Level.DEBUG),
        (graphs, Level.GRAPH),
    ],
)
def test_a_level_for_a_block(
    block: Callable[[], AbstractContextManager[None]], level: Level
) -> None:
    LOGGER.setLevel(logging.ERROR)  # set by the user for Python alone
    before = levels()
    with pytest.raises(KeyError), block():
        assert levels()[:2] == (level, level)
        raise KeyError
    assert levels() == before


def test_both_runtimes_obey(make_handle: MakeHandle, path: Path, log: Log) -> None:
    handle = make_handle(path)
    handle.load()
    assert log.lines() == []
    with info():
        handle.load()
    assert log.lines() == [f"INFO: There is no runtime cache at '{path}' yet"]
    handle.load()
    assert log.lines() == []


def stderr_of(program: str, **environment: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return result.stderr.splitlines()


LOAD = """
import torch_tensorrt.logging
from tests.py.runtime.runtime_cache_testing import handle_of
handle_of("python", "/nowhere/cache.bin").load()
"""
LOAD_BOTH = LOAD + 'handle_of("cpp", "/nowhere/cache.bin").load()'

LOADED = "There is no runtime cache at '/nowhere/cache.bin' yet"


def test_the_environment_sets_the_level_of_both() -> None:
    lines = stderr_of(LOAD_BOTH, TORCHTRT_LOG_LEVEL="info")
    assert lines == [f"INFO: [Torch-TensorRT] - {LOADED}"] * 2


def test_without_a_level_nothing_is_told() -> None:
    assert stderr_of(LOAD_BOTH, TORCHTRT_LOG_LEVEL="") == []


def test_an_unknown_level_in_the_environment_is_a_warning() -> None:
    (line,) = stderr_of(LOAD_BOTH, TORCHTRT_LOG_LEVEL="loud")
    assert line.startswith(
        "WARNING: [Torch-TensorRT] - TORCHTRT_LOG_LEVEL is 'loud', expected internal_error, error,"
    )


def test_without_the_library_python_reads_the_environment() -> None:
    program = f"""
import torch
def load_library(path):
    raise OSError("the library is missing")
torch.ops.load_library = load_library
{LOAD}
"""
    lines = stderr_of(program, TORCHTRT_LOG_LEVEL="loud")
    assert any("TORCHTRT_LOG_LEVEL is 'loud', expected" in line for line in lines)
    lines = stderr_of(program, TORCHTRT_LOG_LEVEL="debug")
    assert lines[-1] == f"INFO: [Torch-TensorRT] - {LOADED}"


def test_a_program_that_has_set_up_logging_gets_each_line_once() -> None:
    lines = stderr_of(
        "import logging; logging.basicConfig(format='mine: %(message)s')" + LOAD,
        TORCHTRT_LOG_LEVEL="info",
    )
    assert lines == [f"mine: {LOADED}"]
