"""Interpreters that end while they hold an engine save its kernels and print nothing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from tests.py.runtime.runtime_testing import (
    Plan,
    kernels_missing,
    make_plan,
    run_interpreter,
)

IN_A_LOCAL = """
def main():
    module = begin()
main()
"""

IN_A_GLOBAL = """
module = begin()
"""

IN_A_CYCLE = """
import gc
gc.disable()
module = begin()
module.itself = [module]
del module
"""

# A built-in module's objects are torn down last.
IN_A_BUILTIN_MODULE = """
sys.module = begin()
"""

IN_A_THREAD = """
import threading
def main():
    module = begin()
threading.Thread(target=main).start()
"""

IN_A_THREAD_THAT_NEVER_ENDS = """
import threading
begun = threading.Event()
def main():
    module = begin()
    begun.set()
    threading.Event().wait()
threading.Thread(target=main, daemon=True).start()
begun.wait()
"""

IN_A_CACHE_OF_ITS_OWN = """
cache = make_cache(runtime, path, autosave=True)
module = start(runtime, plans[0], cache)
del module
"""

# Without numpy, torch keeps __main__'s objects until the very end, because of its failed import.
WITHOUT_NUMPY = """
import sys, warnings
sys.modules["numpy"] = None
warnings.filterwarnings("ignore", "Failed to initialize NumPy")
"""

SWITCHED_OFF = """
module = begin()
module.runtime_settings.runtime_cache.save()
module.runtime_settings.runtime_cache.autosave_on_del = False
"""

MANY = """
def place():
    return make_cache(runtime, path, autosave=True) if OWN else path
modules = [start(runtime, plans[0], place()) for _ in range(16)]
"""

EXIT_IN_A_FUNCTION = """
def main():
    module = begin()
    sys.exit(3)
main()
"""

SIGTERM = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
module = begin()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""

UNHANDLED_EXCEPTION = """
module = begin()
def main(argument):
    raise RuntimeError("an error of the program")
main(module)
"""

BEGIN = """
use_device()
runtime, path, *plans = sys.argv[1:]
plans = [Plan.read(plan) for plan in plans]
def begin():
    return start(runtime, plans[0], path)
"""


def run_program(
    code: str, runtime: str, path: Path, *plans: Plan, before_imports: str = ""
) -> subprocess.CompletedProcess[str]:
    written = [
        plan.write(path.with_name(f"plan{i}.pickle")) for i, plan in enumerate(plans)
    ]
    return run_interpreter(
        BEGIN + code, runtime, path, *written, before_imports=before_imports
    )


@pytest.fixture
def plan() -> Plan:
    return make_plan("a")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        pytest.param(IN_A_LOCAL, 0, id="local"),
        pytest.param(IN_A_GLOBAL, 0, id="global"),
        pytest.param(IN_A_CYCLE, 0, id="cycle"),
        pytest.param(IN_A_BUILTIN_MODULE, 0, id="builtin-module"),
        pytest.param(IN_A_THREAD, 0, id="thread"),
        pytest.param(IN_A_THREAD_THAT_NEVER_ENDS, 0, id="endless-thread"),
        pytest.param(IN_A_CACHE_OF_ITS_OWN, 0, id="cache"),
        pytest.param(SWITCHED_OFF, 0, id="switched-off"),
        pytest.param(EXIT_IN_A_FUNCTION, 3, id="sys.exit"),
        pytest.param(SIGTERM, 0, id="sigterm"),
    ],
)
def test_an_interpreter_that_ends_saves(
    runtime: str, path: Path, plan: Plan, code: str, status: int
) -> None:
    ended = run_program(code, runtime, path, plan)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", "")
    assert kernels_missing(runtime, path, plan) == 0


def test_an_interpreter_that_fails_saves(runtime: str, path: Path, plan: Plan) -> None:
    ended = run_program(UNHANDLED_EXCEPTION, runtime, path, plan)
    assert (ended.returncode, ended.stdout) == (1, "")
    lines = ended.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "RuntimeError: an error of the program"
    assert ended.stderr.count("Traceback") == 1
    assert all(line.startswith("  ") for line in lines[1:-1])
    assert kernels_missing(runtime, path, plan) == 0


def test_an_interpreter_without_numpy_saves(
    runtime: str, path: Path, plan: Plan
) -> None:
    ended = run_program(IN_A_GLOBAL, runtime, path, plan, before_imports=WITHOUT_NUMPY)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert kernels_missing(runtime, path, plan) == 0


def test_caches_of_one_path_lose_nothing_at_exit(runtime: str, path: Path) -> None:
    plans = [make_plan(name) for name in "abc"]
    code = "modules = [start(runtime, plan, path) for plan in plans]"
    ended = run_program(code, runtime, path, *plans)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert kernels_missing(runtime, path, *plans) == 0


def test_a_save_that_fails_at_exit_is_one_warning(
    runtime: str, tmp_path: Path, plan: Plan
) -> None:
    path = tmp_path / "gone" / "cache.bin"
    path.parent.mkdir()
    code = "module = begin(); import shutil; shutil.rmtree(Path(path).parent)"
    ended = run_program(code, runtime, path, plan)
    assert (ended.returncode, ended.stdout) == (0, "")
    (warning,) = ended.stderr.splitlines()
    assert f"Can't save the runtime cache '{path}': " in warning
    assert warning.endswith("No such file or directory")


@pytest.mark.parametrize("own", [False, True], ids=["path", "own"])
def test_all_caches_of_an_exit_wait_8_s_at_most(
    runtime: str, path: Path, plan: Plan, own: bool
) -> None:
    with FileLock(f"{path}.lock"):
        ended = run_program(f"OWN = {own}\n{MANY}", runtime, path, plan)
    assert (ended.returncode, ended.stdout) == (0, "")
    warnings = ended.stderr.splitlines()
    assert len(warnings) == (16 if own else 1)
    failure = f"Can't save the runtime cache '{path}': "
    assert all(failure in line and line.endswith(" ms") for line in warnings)
    held = f"another holder kept the lock '{path}.lock' for "
    waits = re.findall(rf"{held}(\d+) ms\n", ended.stderr)
    # Half of what is left of the 8 s, by a machine that may be slow, when the first wait begins.
    assert 2000 <= sum(map(int, waits)) <= 8000 + len(waits)
