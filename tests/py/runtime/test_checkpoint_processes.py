"""Checkpoints in whole processes: what others find while the processes run and after a kill."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.py.runtime.programs import Programs
from tests.py.runtime.runtime_testing import (
    kernels_missing,
    make_plan,
    start_and_save,
    uses_gpu,
    wait_for_kernels,
    wait_until,
)

SIMULATED = pytest.mark.skipif(uses_gpu(), reason="counts compilations")

# Prints the number of kernels that it compiles, and keeps running.
START = """
module = start(runtime, plan, path)
say("compiled", device.counters()["compilations"])
sys.stdin.readline()
"""


@SIMULATED
def test_a_killed_process_has_saved_and_a_later_one_starts_warm(
    programs: Programs, runtime: str, other_runtime: str, path: Path
) -> None:
    plan = make_plan("a")
    with programs.start(START, runtime=runtime, path=path, plan=plan) as first:
        assert first.hear() == "compiled 5"
        wait_for_kernels(runtime, path, plan)
        with programs.start(
            START, runtime=other_runtime, path=path, plan=plan
        ) as second:
            assert second.hear() == "compiled 0"
            first.kill()
            second.tell()
            assert second.wait() == 0
    assert first.stderr == second.stderr == ""
    assert kernels_missing(runtime, path, plan) == 0


FROM_THE_START = """
os.environ["TORCHTRT_RUNTIME_CACHE_CHECKPOINTS"] = VALUE
"""

CHECKPOINTS_ARE_OFF = """
module = start(runtime, plan, path)
time.sleep(3)
say(os.path.exists(path))
"""


def test_an_operator_may_turn_checkpoints_off(
    programs: Programs, runtime: str, path: Path
) -> None:
    plan = make_plan("a")
    code = FROM_THE_START.replace("VALUE", "'0'")
    program = programs.start(
        code + CHECKPOINTS_ARE_OFF, runtime=runtime, path=path, plan=plan
    )
    assert program.hear() == "False"
    assert program.wait() == 0
    assert program.stderr == ""
    assert kernels_missing(runtime, path, plan) == 0


@pytest.mark.parametrize("value", ["", "1", "off"])
def test_another_value_leaves_them_on_and_a_bad_one_is_a_warning(
    programs: Programs, runtime: str, path: Path, value: str
) -> None:
    plan = make_plan("a")
    code = (
        FROM_THE_START.replace("VALUE", repr(value)) + "other = make_cache(runtime)\n"
    )
    with programs.start(code + START, runtime=runtime, path=path, plan=plan) as program:
        program.hear()
        wait_for_kernels(runtime, path, plan)
        program.tell()
        program.wait()
        warnings = program.stderr.splitlines()
    if value == "off":
        (warning,) = warnings
        assert "TORCHTRT_RUNTIME_CACHE_CHECKPOINTS is 'off', expected 0 or 1" in warning
    else:
        assert warnings == []


COUNT_THREADS = """
modules = []
def threads():
    # Each execution context of the simulated device has a thread.
    return len(os.listdir("/proc/self/task")) - len(modules)
before = threads()
"""

THREADS = f"""{COUNT_THREADS}
for place in [f"{{path}}.{{i}}" for i in range(8)]:
    modules.append(start(runtime, plan, place))
    modules.append(start(runtime, plan, make_cache(runtime, place + ".own", autosave=True)))
say(threads() - before)
sys.stdin.readline()
"""


@SIMULATED
def test_one_thread_serves_all_caches(
    programs: Programs, runtime: str, path: Path
) -> None:
    plan = make_plan("a")
    with programs.start(THREADS, runtime=runtime, path=path, plan=plan) as program:
        assert program.hear() == "1"
        for i in range(8):
            for suffix in ("", ".own"):
                file = path.with_name(f"{path.name}.{i}{suffix}")
                wait_for_kernels(runtime, file, plan)


NO_THREAD = f"""{COUNT_THREADS}
modules += [start(runtime, plan, make_cache(runtime, path)), start(runtime, plan, None)]
say(threads() - before)
"""


@SIMULATED
def test_a_process_without_such_caches_has_no_thread(
    programs: Programs, runtime: str, path: Path
) -> None:
    program = programs.run(NO_THREAD, runtime=runtime, path=path, plan=make_plan("a"))
    assert program.outcome == (0, "0\n", "")


WITHOUT_CHECKPOINTS = f"""{COUNT_THREADS}
cache = make_cache(runtime, path, autosave=True)
cache.checkpoints = False
modules.append(start(runtime, plan, cache))
say(threads() - before)
"""


@SIMULATED
def test_a_thread_of_python_is_there_for_the_exit_without_checkpoints_too(
    programs: Programs, runtime: str, path: Path
) -> None:
    program = programs.run(
        WITHOUT_CHECKPOINTS, runtime=runtime, path=path, plan=make_plan("a")
    )
    # CPython 3.12 and later can start no thread during the exit.
    assert program.outcome == (0, "1\n" if runtime == "python" else "0\n", "")


IN_PLACE = """
from tests.py.runtime.unprivileged import give_up_capabilities
give_up_capabilities()
module = start(runtime, plan, path)
sys.stdin.readline()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "folder"
    folder.mkdir()
    yield folder
    folder.chmod(0o755)


@SIMULATED
def test_a_file_that_must_be_written_in_place_is_saved_at_the_end_alone(
    programs: Programs, runtime: str, folder: Path, device: Any
) -> None:
    plans = [make_plan(name) for name in "ab"]
    path = folder / "cache.bin"
    start_and_save(runtime, path, plans[0])
    before = path.read_bytes()
    folder.chmod(0o555)
    with programs.start(IN_PLACE, runtime=runtime, path=path, plan=plans[1]) as program:
        wait_until(lambda: "\n" in program.stderr)
        (warning,) = program.stderr.splitlines()
        assert (
            f"Can't save the runtime cache '{path}': it can only be written in place, and a "
            "kill could tear it: " in warning
        )
        assert warning.endswith("Permission denied")
        assert path.read_bytes() == before
        program.tell()
        assert program.wait() == 0
        _, warning = program.stderr.splitlines()
    assert f"The runtime cache '{path}' is written in place" in warning
    assert kernels_missing(runtime, path, *plans) == 0


IN_PLACE_UNTIL_A_SAVE = """
import torch_tensorrt
from tests.py.runtime.unprivileged import give_up_capabilities
torch_tensorrt.logging.set_level("info")  # at which a second failure would be logged
give_up_capabilities()
cache = make_cache(runtime, path, autosave=True)
modules = [start(runtime, plan, cache)]
sys.stdin.readline()
cache.save()
modules.append(start(runtime, other_plan, cache))
sys.stdin.readline()
"""


@SIMULATED
def test_a_file_that_can_only_be_written_in_place_is_tried_once_until_a_save(
    programs: Programs, runtime: str, folder: Path, device: Any
) -> None:
    failure = "it can only be written in place"
    plans = [make_plan(name) for name in "abc"]
    path = folder / "cache.bin"
    start_and_save(runtime, path, plans[0])
    folder.chmod(0o555)
    with programs.start(
        IN_PLACE_UNTIL_A_SAVE,
        runtime=runtime,
        path=path,
        plan=plans[1],
        other_plan=plans[2],
    ) as program:
        wait_until(lambda: failure in program.stderr)
        time.sleep(4)  # a second attempt would come after 2 s
        assert program.stderr.count(failure) == 1
        folder.chmod(0o755)
        program.tell()
        wait_for_kernels(runtime, path, *plans)
