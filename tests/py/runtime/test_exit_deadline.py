"""Exits that meet a lock that stays held or a disk that hangs: they end, and save what they can.

LD_PRELOAD names the library of observed_calls.cpp, which makes system calls hang.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests.py.runtime.programs import Program, Programs
from tests.py.runtime.runtime_cache_testing import RUNTIMES
from tests.py.runtime.runtime_testing import (
    DEADLINE,
    Plan,
    kernels_missing,
    make_plan,
    uses_gpu,
)

pytestmark = pytest.mark.skipif(
    uses_gpu(), reason="needs programs on a simulated device"
)

# `locked` is a path whose lock the test holds. `free` is a path beside it.
BEGIN = """
import ctypes
observed_calls = ctypes.CDLL(None)
def hang(call):
    observed_calls.hang_calls(call)
def wait_until_checkpoint():
    device.reset_counters()
    while device.calls("IRuntimeCache::serialize") == 0:
        time.sleep(0.01)
"""

ENDS = {
    "locked": "module = start(runtime, plan, locked)",
    "locked during a checkpoint": """
module = start(runtime, plan, locked)
wait_until_checkpoint()
""",
    "many locked": """
modules = [start(runtime, plan, make_cache(runtime, locked, autosave=True)) for _ in range(16)]
""",
    "locked before": """
modules = [start(runtime, plan, place) for place in (locked, free)]
""",
    "locked after": """
modules = [start(runtime, plan, place) for place in (free, locked)]
""",
    "locked in a thread": """
modules = [start(runtime, plan, place) for place in (free, locked)]
cache = modules[1].runtime_settings.runtime_cache
cache._handle.lock_timeout = 60.0  # a thread that returns to a finalized interpreter aborts
threading.Thread(target=cache.save, daemon=True).start()
time.sleep(0.5)
""",
    "in cycles": """
gc.disable()
for place in (locked, free):
    module = start(runtime, plan, place)
    module.itself = [module]
    del module
""",
    "disk that hangs": """
module = start(runtime, plan, free)
hang(b"fsync")
""",
    "disk that hangs during a checkpoint": """
module = start(runtime, plan, free)
hang(b"fsync")
while observed_calls.hung_calls() == 0:
    time.sleep(0.01)
""",
}


@dataclass
class End:
    program: Program
    locked: Path
    free: Path
    plan: Plan

    @property
    def warnings(self) -> list[str]:
        return self.program.stderr.splitlines()


Ends = dict[tuple[str, str], End]


@pytest.fixture(scope="module")
def ends(
    programs: Programs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ends]:
    """Runs all programs at once, because each one takes as long as an exit may take."""
    ends: Ends = {}
    plan = make_plan("a")
    with ExitStack() as locks:
        for runtime in RUNTIMES:
            for name, code in ENDS.items():
                folder = tmp_path_factory.mktemp("end")
                locked, free = folder / "locked.bin", folder / "free.bin"
                locks.enter_context(FileLock(f"{locked}.lock"))
                program = programs.start(
                    f"{BEGIN}\n{code}\nsay('ends')",
                    runtime=runtime,
                    locked=locked,
                    free=free,
                    plan=plan,
                )
                ends[runtime, name] = End(program, locked, free, plan)
        deadline = time.monotonic() + DEADLINE
        while any(end.program.poll() is None for end in ends.values()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        yield ends


@pytest.fixture(params=ENDS)
def name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def end(ends: Ends, runtime: str, name: str) -> End:
    return ends[runtime, name]


def test_it_ends(end: End) -> None:
    assert end.program.poll() == 0
    assert "Traceback" not in end.program.stderr


def test_each_cache_that_is_not_saved_is_one_warning(end: End, name: str) -> None:
    path = end.free if "hangs" in name else end.locked
    causes = [
        warning.split(f"Can't save the runtime cache '{path}': ")[1]
        for warning in end.warnings
    ]
    assert all(cause.endswith(" ms") for cause in causes)
    assert len(causes) == (16 if name == "many locked" else 1), causes


@pytest.mark.parametrize(
    "name", ["locked before", "locked after", "locked in a thread", "in cycles"]
)
def test_a_cache_that_can_not_be_saved_keeps_no_other_from_it(
    ends: Ends, runtime: str, name: str
) -> None:
    end = ends[runtime, name]
    assert end.program.poll() == 0
    assert kernels_missing(runtime, end.free, end.plan) == 0


# Locks that are held for a short time.

LOCKED_FOR_A_WHILE = f"""{BEGIN}
modules = [start(runtime, plan, path)]
wait_until_checkpoint()
modules.append(start(runtime, other_plan, path))
say("ends")
"""


def test_an_exit_during_a_checkpoint_that_waits_saves_when_the_lock_is_free(
    programs: Programs, runtime: str, path: Path
) -> None:
    plans = [make_plan(name) for name in "ab"]
    with FileLock(f"{path}.lock"):
        program = programs.start(
            LOCKED_FOR_A_WHILE,
            runtime=runtime,
            path=path,
            plan=plans[0],
            other_plan=plans[1],
        )
        program.hear()
        time.sleep(0.3)
        assert program.poll() is None
    assert (program.wait(), program.stderr) == (0, "")
    assert kernels_missing(runtime, path, *plans) == 0
