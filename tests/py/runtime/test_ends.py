"""What is on disk after a process has ended, however it ended.

LD_PRELOAD names the library of observed_calls.cpp, which makes system calls hang.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.py.runtime.programs import Programs
from tests.py.runtime.runtime_cache_testing import names_in
from tests.py.runtime.runtime_testing import (
    kernels_missing,
    make_plan,
    start_and_save,
    uses_gpu,
    wait_for_kernels,
)

pytestmark = pytest.mark.skipif(uses_gpu(), reason="CUDA does not survive a fork")

START = """
module = start(runtime, plan, path)
"""

SAVE_ON_SIGTERM = """
from torch_tensorrt.runtime import save_on_signal
save_on_signal(signal.SIGTERM)
"""


def raised(name: str) -> str:
    return f"os.kill(os.getpid(), signal.{name})\ntime.sleep(600)"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        pytest.param(START + raised("SIGINT"), -signal.SIGINT, id="SIGINT"),
        pytest.param(
            SAVE_ON_SIGTERM + START + raised("SIGTERM"),
            -signal.SIGTERM,
            id="save_on_signal",
        ),
    ],
)
def test_an_end_that_python_sees_saves_everything(
    programs: Programs, runtime: str, path: Path, code: str, status: int
) -> None:
    plan = make_plan("a")
    program = programs.run(code, runtime=runtime, path=path, plan=plan)
    assert program.wait() == status
    assert kernels_missing(runtime, path, plan) == 0
    if status in (1, -signal.SIGINT):
        assert program.stderr.startswith("Traceback ")
        assert program.stderr.count("Traceback") == 1
        assert "Can't" not in program.stderr
    else:
        assert program.stderr == ""


UNSEEN = f"""{START}
say("compiled")
exec(sys.stdin.readline())
"""


def test_an_end_saves_though_another_process_keeps_the_turn(
    programs: Programs, runtime: str, path: Path
) -> None:
    plan = make_plan("a")
    with FileLock(f"{path}.merge.lock"):
        program = programs.run(START, runtime=runtime, path=path, plan=plan)
        assert program.outcome == (0, "", "")
    assert kernels_missing(runtime, path, plan) == 0


@pytest.mark.parametrize(
    ("code", "status"),
    [
        pytest.param(
            "os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, id="SIGTERM"
        ),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, id="SIGKILL"
        ),
        pytest.param("os._exit(3)", 3, id="os._exit"),
        pytest.param("os.abort()", -signal.SIGABRT, id="abort"),
    ],
)
def test_an_end_that_nobody_sees_loses_nothing_that_was_saved_before(
    programs: Programs, runtime: str, path: Path, code: str, status: int
) -> None:
    plan = make_plan("a")
    with programs.start(UNSEEN, runtime=runtime, path=path, plan=plan) as program:
        program.hear()
        wait_for_kernels(runtime, path, plan)
        program.tell(code)
        assert (program.wait(), program.stderr) == (status, "")
    assert kernels_missing(runtime, path, plan) == 0


HANGING = """
import ctypes
observed_calls = ctypes.CDLL(None)
def hang():
    observed_calls.hang_calls(call)
def wait_until_hung():
    while observed_calls.hung_calls() == 0:
        time.sleep(0.01)
"""

CHECKPOINT_THAT_HANGS = f"""{HANGING}
module = start(runtime, plan, path)
while not os.path.exists(path):
    time.sleep(0.01)
hang()
other = start(runtime, other_plan, path)
wait_until_hung()
say("hangs")
sys.stdin.readline()
"""


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_kill_during_a_checkpoint_leaves_the_last_one(
    programs: Programs, runtime: str, path: Path, device: Any, call: str
) -> None:
    plans = [make_plan(name) for name in "abc"]
    with programs.start(
        CHECKPOINT_THAT_HANGS,
        runtime=runtime,
        path=path,
        plan=plans[0],
        other_plan=plans[1],
        call=call.encode(),
    ) as program:
        assert program.hear() == "hangs"
        before = path.read_bytes()
        program.kill()
    assert path.read_bytes() == before
    start_and_save(runtime, path, plans[2])
    files = {"cache.bin", "cache.bin.lock", "cache.bin.merge.lock"}
    assert names_in(path.parent) <= files
    assert kernels_missing(runtime, path, plans[0], plans[2]) == 0


# Workers.

WORKER = """
def work():
    start_to_stay(runtime, plan, path)
    time.sleep(600)
worker = multiprocessing.get_context("fork").Process(target=work)
worker.start()
wait_for_kernels(runtime, path, plan)
worker.terminate()
worker.join()
say(worker.exitcode)
"""

DATA_LOADER = """
from torch.utils.data import DataLoader, Dataset, get_worker_info
modules = []
class Data(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        if not modules:
            plans = [plan, other_plan]
            modules.append(start(runtime, plans[get_worker_info().id], path))
        return len(modules)
say(sum(int(count.sum()) for count in DataLoader(Data(), num_workers=2)))
"""


def test_a_worker_of_multiprocessing_that_is_terminated_has_saved(
    programs: Programs, runtime: str, path: Path
) -> None:
    plan = make_plan("a")
    program = programs.run(WORKER, runtime=runtime, path=path, plan=plan)
    assert program.outcome == (0, f"{-signal.SIGTERM}\n", "")
    assert kernels_missing(runtime, path, plan) == 0


def test_the_workers_of_a_data_loader_save(
    programs: Programs, runtime: str, path: Path
) -> None:
    plans = [make_plan(name) for name in "ab"]
    program = programs.run(
        DATA_LOADER, runtime=runtime, path=path, plan=plans[0], other_plan=plans[1]
    )
    assert program.outcome == (0, "8\n", "")
    assert kernels_missing(runtime, path, *plans) == 0
