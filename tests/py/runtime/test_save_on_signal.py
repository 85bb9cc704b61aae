"""torch_tensorrt.runtime.save_on_signal: a signal saves everything, then acts as before."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from tests.py.runtime.programs import Programs
from tests.py.runtime.runtime_testing import (
    kernels_missing,
    make_plan,
    run_interpreter,
    uses_gpu,
)
from torch_tensorrt.runtime import save_on_signal

SIMULATED = pytest.mark.skipif(uses_gpu(), reason="CUDA does not survive a fork")

BEGIN = """
from torch_tensorrt.runtime import save_on_signal
def raise_signal(signalnum=signal.SIGTERM):
    os.kill(os.getpid(), signalnum)
    time.sleep(0)  # runs the handler
def saved():
    return os.path.exists(path)
"""

START = """
module = start(runtime, plan, make_cache(runtime, path, autosave=True))
module.runtime_settings.runtime_cache.checkpoints = False
"""


def saying(what: str) -> str:
    return f"signal.signal(signal.SIGTERM, lambda *_: say({what}, saved()))\n"


SAVE = "save_on_signal(signal.SIGTERM)\n"
KILL = "raise_signal()\n"
LEAVE = "os._exit(0)\n"  # saves nothing


@SIMULATED
@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        pytest.param(SAVE + START + KILL, -signal.SIGTERM, "", id="default"),
        pytest.param(
            SAVE + START + "time.sleep(0.1)\n" + KILL, -signal.SIGTERM, "", id="idle"
        ),
        pytest.param(SAVE + SAVE + START + KILL, -signal.SIGTERM, "", id="twice"),
        pytest.param(
            saying("'mine'") + SAVE + START + KILL + LEAVE,
            0,
            "mine True\n",
            id="handler",
        ),
        pytest.param(
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
            + SAVE
            + START
            + KILL,
            3,
            "",
            id="exits",
        ),
        pytest.param(
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            + SAVE
            + START
            + KILL
            + "say(saved())\n"
            + LEAVE,
            0,
            "True\n",
            id="ignored",
        ),
        pytest.param(
            saying("'mine'") + SAVE + START + KILL + KILL + LEAVE,
            0,
            "mine True\nmine True\n",
            id="again",
        ),
        pytest.param(
            "save_on_signal(signal.SIGUSR1)\n"
            + SAVE
            + START
            + "raise_signal(signal.SIGUSR1)\n",
            -signal.SIGUSR1,
            "",
            id="several",
        ),
    ],
)
def test_a_signal_saves_and_does_what_it_did(
    programs: Programs, runtime: str, path: Path, code: str, status: int, said: str
) -> None:
    plan = make_plan("a")
    program = programs.run(BEGIN + code, runtime=runtime, path=path, plan=plan)
    assert program.outcome == (status, said, "")
    assert kernels_missing(runtime, path, plan) == 0


SERVES_ON = f"""
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
{SAVE}
cache = make_cache(runtime, path, autosave=True)
module = start(runtime, plan, cache)
try:
    raise_signal()
except SystemExit:
    other = start(runtime, other_plan, cache)
    wait_for_kernels(runtime, path, plan, other_plan)
    os.kill(os.getpid(), signal.SIGKILL)
"""

DRAINS = f"""
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
{SAVE}
cache = make_cache(runtime, path, autosave=True)
cache.checkpoints = False
module = start(runtime, plan, cache)
try:
    raise_signal()
finally:
    time.sleep(9)
    other = start(runtime, other_plan, cache)
"""


@SIMULATED
@pytest.mark.parametrize(
    ("code", "status"),
    [
        pytest.param(SERVES_ON, -signal.SIGKILL, id="serves-on"),
        pytest.param(DRAINS, 3, id="drains"),
    ],
)
def test_a_process_that_goes_on_after_sys_exit_in_a_handler_saves_as_before(
    programs: Programs, runtime: str, path: Path, code: str, status: int
) -> None:
    plans = [make_plan(name) for name in "ab"]
    program = programs.run(
        BEGIN + code, runtime=runtime, path=path, plan=plans[0], other_plan=plans[1]
    )
    assert program.outcome == (status, "", "")
    assert kernels_missing(runtime, path, *plans) == 0


@SIMULATED
def test_a_handler_that_is_installed_later_replaces_it(
    programs: Programs, runtime: str, path: Path
) -> None:
    program = programs.run(
        BEGIN + SAVE + START + saying("'later'") + KILL + LEAVE,
        runtime=runtime,
        path=path,
        plan=make_plan("a"),
    )
    assert program.outcome == (0, "later False\n", "")


@SIMULATED
def test_caches_that_do_not_save_themselves_are_not_saved(
    programs: Programs, runtime: str, path: Path
) -> None:
    program = programs.run(
        BEGIN + SAVE + START.replace("autosave=True", "autosave=False") + KILL,
        runtime=runtime,
        path=path,
        plan=make_plan("a"),
    )
    assert program.outcome == (-signal.SIGTERM, "", "")
    assert not path.exists()


SEVERAL = """
other_path = f"{path}.gone/cache.bin"
os.mkdir(f"{path}.gone")
other = start(runtime, plan, other_path)
other.runtime_settings.runtime_cache.checkpoints = False
os.rmdir(f"{path}.gone")
"""


@SIMULATED
def test_a_cache_that_can_not_be_saved_is_a_warning(
    programs: Programs, runtime: str, path: Path
) -> None:
    plan = make_plan("a")
    program = programs.run(
        BEGIN + SAVE + SEVERAL + START + KILL, runtime=runtime, path=path, plan=plan
    )
    assert (program.wait(), program.stdout) == (-signal.SIGTERM, "")
    (warning,) = program.stderr.splitlines()
    assert f"Can't save the runtime cache '{path}.gone/cache.bin': " in warning
    assert kernels_missing(runtime, path, plan) == 0


FORK = f"""
{saying("'child' if os.getpid() != parent else 'parent'")}
parent = os.getpid()
{SAVE}
if os.fork() == 0:
    {START.strip().replace(chr(10), chr(10) + "    ")}
    raise_signal()
    os._exit(0)
os.wait()
"""

FORK_DEFAULT = f"""
{SAVE}
pid = os.fork()
if pid == 0:
    {START.strip().replace(chr(10), chr(10) + "    ")}
    raise_signal()
say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), saved())
"""


@SIMULATED
@pytest.mark.parametrize(
    ("code", "said"),
    [(FORK, "child False\n"), (FORK_DEFAULT, f"{-signal.SIGTERM} False\n")],
    ids=["handler", "default"],
)
def test_a_forked_child_does_what_the_signal_did_and_saves_nothing(
    programs: Programs, runtime: str, path: Path, code: str, said: str
) -> None:
    program = programs.run(
        BEGIN + code, runtime=runtime, path=path, plan=make_plan("a")
    )
    assert program.outcome == (0, said, "")


# Code that the signal interrupts. A deadlock would last forever, or until the save gives up.

COUNT = """
signals = 0
def count(*_):
    global signals
    signals += 1
signal.signal(signal.SIGUSR1, count)
save_on_signal(signal.SIGUSR1)
"""

STORM = f"""{COUNT}
is_done = False
def depth():
    frame = sys._current_frames()[threading.main_thread().ident]
    depth = 0
    while frame := frame.f_back:
        depth += 1
    return depth
def storm():
    while not is_done:
        # On a slow machine, handlers would interrupt each other until the stack overflows.
        if depth() < 500:
            os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.001)
cache = make_cache(runtime, path, autosave=True)
plans = [plan, other_plan]
module = start(runtime, plan, cache)
thread = threading.Thread(target=storm)
thread.start()
begin = time.monotonic()
while signals < 200 and time.monotonic() < begin + 120:
    cache.save()
    cache.load()
    cache.save_to_stream(open(os.devnull, "wb"))
    other = start(runtime, other_plan, cache)
    module.runtime_settings = module.runtime_settings.merge(runtime_cache=None)
    module.runtime_settings = module.runtime_settings.merge(runtime_cache=cache)
    run(module, plan)
is_done = True
thread.join()
say(signals >= 200)
"""


@SIMULATED
def test_a_signal_may_interrupt_anything(
    programs: Programs, runtime: str, path: Path
) -> None:
    plans = [make_plan(name) for name in "ab"]
    program = programs.run(
        BEGIN + STORM, runtime=runtime, path=path, plan=plans[0], other_plan=plans[1]
    )
    assert program.outcome == (0, "True\n", "")
    assert kernels_missing(runtime, path, *plans) == 0


IN_A_LOG_HANDLER = f"""{COUNT}
from torch_tensorrt.logging import info
class Raising(logging.Handler):
    def emit(self, record):
        if threading.current_thread() is threading.main_thread() and not signals:
            raise_signal(signal.SIGUSR1)
        lines.append(record.getMessage())
lines = []
logging.getLogger("torch_tensorrt").addHandler(Raising())
logging.getLogger("torch_tensorrt").propagate = False
module = start(runtime, plan, make_cache(runtime, path, autosave=True))
with info():
    begin = time.monotonic()
    logging.getLogger("torch_tensorrt.runtime").warning("from the user")
    say(signals, saved(), time.monotonic() - begin < 7.5)
"""


@SIMULATED
def test_a_signal_may_interrupt_a_log_handler(
    programs: Programs, runtime: str, path: Path
) -> None:
    program = programs.run(
        BEGIN + IN_A_LOG_HANDLER, runtime=runtime, path=path, plan=make_plan("a")
    )
    assert program.wait() == 0
    assert program.stdout == "1 True True\n"
    assert "Can't save" not in program.stderr


# In Python's own file system calls the lock is held.
IN_A_SAVE = f"""{COUNT}
fsync = os.fsync
def raise_in_fsync(file):
    if threading.current_thread() is threading.main_thread() and not signals:
        os.fsync = fsync
        raise_signal(signal.SIGUSR1)
    fsync(file)
os.fsync = raise_in_fsync
cache = make_cache("python", path, autosave=True)
module = start("python", plan, cache)
begin = time.monotonic()
cache.save()
say(signals, time.monotonic() - begin < 7.5)
"""


@SIMULATED
def test_a_signal_that_interrupts_a_save_waits_for_its_end(
    programs: Programs, path: Path
) -> None:
    plan = make_plan("a")
    program = programs.run(BEGIN + IN_A_SAVE, path=path, plan=plan)
    assert program.outcome == (0, "1 True\n", "")
    assert kernels_missing("python", path, plan) == 0


# Where save_on_signal may be called.


def test_another_thread_can_not_install_it() -> None:
    errors: list[ValueError] = []

    def install() -> None:
        try:
            save_on_signal(signal.SIGUSR1)
        except ValueError as error:
            errors.append(error)

    before = signal.getsignal(signal.SIGUSR1)
    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    (error,) = errors
    assert "main thread" in str(error)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_signal_that_can_not_be_caught_is_an_error() -> None:
    with pytest.raises((OSError, ValueError)):
        save_on_signal(signal.SIGKILL)
    with pytest.raises(ValueError):
        save_on_signal(4711)


def test_an_import_installs_no_handler() -> None:
    handlers = "{s: signal.getsignal(s) for s in signal.valid_signals()}"
    ended = run_interpreter(
        f"print(before == {handlers})",
        before_imports=f"import signal, torch\nbefore = {handlers}",
    )
    assert (ended.returncode, ended.stdout) == (0, "True\n")
