"""A process may fork at any time, and each child has its own caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.py.runtime.programs import Programs
from tests.py.runtime.runtime_testing import (
    Plan,
    kernels_missing,
    make_plan,
    start_and_save,
    uses_gpu,
)
from tests.util.simulation.simulated_device import relu_plan

pytestmark = pytest.mark.skipif(uses_gpu(), reason="CUDA does not survive a fork")

FORKS = 1000  # per runtime

BEGIN = """
import faulthandler
faulthandler.register(signal.SIGALRM, chain=True)
from tests.util.simulation.simulated_device import relu_plan
def fork(child):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        child()
        os._exit(0)
    return pid
def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def small_plan(name):
    return Plan(relu_plan(f"{name}-", 1, 64), ["x"], ["y"], (4,))
def cache_of(module):
    return module.runtime_settings.runtime_cache
# A child hangs in an operator of torch that another thread was calling for the first time.
def call_operators_of_torch():
    start(runtime, plan, None)
"""


def small_plan(name: str) -> Plan:
    return Plan(relu_plan(f"{name}-", 1, 64), ["x"], ["y"], (4,))


# Each round is a process of its own, because only the first use of a cache initializes anything.
FIRST_USE = """
def use():
    start(runtime, small_plan(str(os.getpid())), path)
def child():
    use_device()
    use()
def round():
    user = threading.Thread(target=use)
    user.start()
    statuses = {wait(pid) for pid in [fork(child) for _ in range(5)]}
    user.join()
    os._exit(statuses != {0})
call_operators_of_torch()
say({wait(fork(round)) for _ in range(100)})
"""


def test_forks_during_the_first_use_of_a_cache(
    programs: Programs, runtime: str, path: Path, device: Any
) -> None:
    plan = small_plan("first")
    start_and_save(runtime, path, plan)
    program = programs.run(BEGIN + FIRST_USE, runtime=runtime, path=path, plan=plan)
    assert program.outcome == (0, "{0}\n", "")


# Runs four children at a time. The parent's device is in use during forks, so each child has its
# own.
BUSY = """
compiled = []
is_done = False
def compile_all_the_time():
    modules = []
    while not is_done:
        name = f"parent{len(compiled)}"
        modules = [*modules[-2:], start(runtime, small_plan(name), path)]
        compiled.append(name)
        time.sleep(0.02)
def child():
    use_device()
    module = start(runtime, small_plan(f"child{number}"), path)
    del module
call_operators_of_torch()
compiling = threading.Thread(target=compile_all_the_time)
compiling.start()
children = []
statuses = set()
for number in range(forks):
    if len(children) == 4:
        statuses.add(wait(children.pop(0)))
    children.append(fork(child))
statuses |= {wait(pid) for pid in children}
is_done = True
compiling.join()
say(statuses, len(compiled))
"""


def test_forks_of_a_process_that_compiles_and_saves_all_the_time(
    programs: Programs, runtime: str, path: Path
) -> None:
    plan = small_plan("first")
    program = programs.run(
        BEGIN + BUSY, runtime=runtime, path=path, plan=plan, forks=FORKS
    )
    status, said, errors = program.outcome
    assert (status, errors) == (0, "")
    statuses, compiled = said.split()
    assert statuses == "{0}"
    names = [f"parent{i}" for i in range(int(compiled))]
    names += [f"child{i}" for i in range(FORKS)]
    assert kernels_missing(runtime, path, *map(small_plan, names)) == 0


# Loading a large cache into a live one takes long enough for a fork to happen during it.
LOADING = """
is_done = False
def make_caches_live():
    while not is_done:
        start(runtime, plan, make_cache(runtime, path, autosave=True))
loading = threading.Thread(target=make_caches_live)
loading.start()
say({wait(fork(lambda: None)) for _ in range(100)})
is_done = True
loading.join()
"""


def test_forks_while_large_caches_become_live(
    programs: Programs, runtime: str, path: Path, device: Any
) -> None:
    plan = Plan(relu_plan("large", 4, 8 << 20), ["x"], ["y"], (4,))
    start_and_save(runtime, path, plan)
    program = programs.run(BEGIN + LOADING, runtime=runtime, path=path, plan=plan)
    assert program.outcome == (0, "{0}\n", "")


# torch's copies of more than 32 KiB run in OpenMP's threads, which a child lacks.
COPIED = """
import io
torch.set_num_threads(2)
torch.ones(1 << 20).sum()
def child():
    make_cache(runtime).load_from_stream(io.BytesIO(bytes(1 << 20)))
say(wait(fork(child)))
"""


def test_a_child_copies_bytes_although_its_parent_used_openmp(
    programs: Programs, runtime: str
) -> None:
    program = programs.run(BEGIN + COPIED, runtime=runtime)
    assert program.outcome == (0, "0\n", "")


# What a child inherits.

LIVE = """
own.load(saved)
module = start(runtime, plan, own)
own.checkpoints = False
def child():
    say(own.has_cache(), own.save(), os.path.exists(path))
    say(own.statistics() == make_cache(runtime).statistics())
wait(fork(child))
"""

LIVE_AND_EXITS = """
module = start(runtime, plan, own)
own.checkpoints = False
pid = os.fork()
if pid == 0:
    sys.exit(3)
say(wait(pid), os.path.exists(path))
"""

LIVE_AND_DROPPED = """
modules = [start(runtime, plan, own), start(runtime, plan, path)]
cache_of(modules[1]).checkpoints = own.checkpoints = False
def child():
    global own
    del own
    modules.clear()
    gc.collect()
    say(os.path.exists(path))
wait(fork(child))
"""

PENDING = """
own.load(saved)
def child():
    say(own.has_cache())
    device.reset_counters()
    module = start(runtime, plan, own)
    say(device.counters()["compilations"], own.save() > 0)
wait(fork(child))
"""

MODULE_RUNS = """
module = start(runtime, plan, PLACE)
cache_of(module).checkpoints = False
parents = cache_of(module)
def child():
    device.reset_counters()
    run(module, plan)
    say(device.counters()["compilations"])
    other = start(runtime, other_plan, cache_of(module))
    cache_of(module).save()
wait(fork(child))
say(os.path.exists(path))
"""

CHECKPOINTED_IN_THE_CHILD = """
parents = start(runtime, plan, path)
cache_of(parents).checkpoints = False
def child():
    module = start(runtime, other_plan, path)
    while not os.path.exists(path):
        time.sleep(0.01)
    say("saved")
    os.kill(os.getpid(), signal.SIGKILL)
say(wait(fork(child)))
wait_for_kernels(runtime, path, other_plan)
"""

GRANDCHILD = """
module = start(runtime, plan, path)
cache_of(module).checkpoints = False
def grandchild():
    theirs = start(runtime, other_plan, path)
    del theirs
def child():
    theirs = start(runtime, plan, path)
    cache_of(theirs).checkpoints = False
    say(wait(fork(grandchild)))
    wait_for_kernels(runtime, path, other_plan)
wait(fork(child))
"""


@pytest.mark.parametrize(
    ("code", "said", "saved_at_the_end"),
    [
        pytest.param(LIVE, "False 0 False\nTrue\n", "a", id="live"),
        pytest.param(LIVE_AND_EXITS, "3 False\n", "a", id="exits"),
        pytest.param(LIVE_AND_DROPPED, "False\n", "a", id="dropped"),
        pytest.param(PENDING, "True\n0 True\n", "a", id="pending"),
        pytest.param(
            MODULE_RUNS.replace("PLACE", "path"), "5\nTrue\n", "ab", id="module"
        ),
        pytest.param(
            MODULE_RUNS.replace("PLACE", "own"), "5\nTrue\n", "ab", id="module-own"
        ),
        pytest.param(CHECKPOINTED_IN_THE_CHILD, "saved\n-9\n", "ab", id="checkpointed"),
        pytest.param(GRANDCHILD, "0\n", "ab", id="grandchild"),
    ],
)
def test_a_child_has_caches_of_its_own(
    programs: Programs,
    runtime: str,
    path: Path,
    device: Any,
    code: str,
    said: str,
    saved_at_the_end: str,
) -> None:
    plans = {name: make_plan(name) for name in "ab"}
    saved = path.with_name("saved.bin")
    start_and_save(runtime, saved, plans["a"])
    program = programs.run(
        f"{BEGIN}\nown = make_cache(runtime, path, autosave=True)\n{code}",
        runtime=runtime,
        path=path,
        plan=plans["a"],
        other_plan=plans["b"],
        saved=saved,
    )
    assert program.outcome == (0, said, "")
    assert (
        kernels_missing(runtime, path, *(plans[name] for name in saved_at_the_end)) == 0
    )


ENGINE = """
engine = torch.classes.tensorrt.Engine(
    torch.frombuffer(bytearray(plan.engine), dtype=torch.uint8), plan.inputs, plan.outputs
)
handle = torch.classes.tensorrt.RuntimeCacheHandle.for_path(str(path))
engine.set_runtime_settings("lazy", "disabled", handle)
def execute():
    return torch.ops.tensorrt.execute_engine([torch.zeros(plan.shape)], engine)
execute()
def child():
    try:
        execute()
    except RuntimeError as error:
        say(error)
wait(fork(child))
execute()
del engine
"""


def test_an_engine_of_cpp_code_can_not_be_used_in_a_child(
    programs: Programs, path: Path
) -> None:
    plan = make_plan("a")
    program = programs.run(BEGIN + ENGINE, path=path, plan=plan)
    status, said, errors = program.outcome
    assert (status, errors) == (0, "")
    assert "fork" in said
    assert kernels_missing("cpp", path, plan) == 0
