"""One cache per path, runtime and process for the paths in settings."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import torch_tensorrt
from tests.py.runtime.runtime_cache_testing import Log, names_in, to_tensor
from tests.py.runtime.runtime_testing import (
    DEADLINE,
    Child,
    Plan,
    children,
    kernels_missing,
    make_cache,
    make_plan,
    run,
    run_interpreter,
    start,
    uses_gpu,
)
from torch_tensorrt.dynamo.runtime import TorchTensorRTModule
from torch_tensorrt.logging import info
from torch_tensorrt.runtime import (
    RuntimeCache,
    RuntimeSettings,
)
from torch_tensorrt.runtime import _runtime_cache as implementation
from torch_tensorrt.runtime import (
    default_runtime_cache_path,
    runtime_cache,
    runtime_config,
)

pytestmark = pytest.mark.usefixtures("without_checkpoints")

NO_FORK_ON_GPU = pytest.mark.skipif(uses_gpu(), reason="CUDA does not survive a fork")
SIMULATED = pytest.mark.skipif(uses_gpu(), reason="counts calls of TensorRT-RTX")


def cache_of(module: torch.nn.Module) -> RuntimeCache:
    cache = getattr(module, "runtime_settings").runtime_cache
    assert isinstance(cache, RuntimeCache)
    return cache


def path_cache(runtime: str, path: Path | str) -> RuntimeCache:
    return implementation.path_cache(str(path), use_python_runtime=runtime == "python")


def count(lines: list[str], beginning: str) -> int:
    return sum(line.startswith(f"INFO: {beginning}") for line in lines)


def unpickled(module: torch.nn.Module) -> TorchTensorRTModule:
    other = pickle.loads(pickle.dumps(module))
    assert isinstance(other, TorchTensorRTModule)
    return other


def reloaded(module: torch.nn.Module) -> TorchTensorRTModule:
    """The module after torch.save and torch.load."""
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    other = torch.load(stream, weights_only=False)
    assert isinstance(other, TorchTensorRTModule)
    return other


# One object, one load and one save.


def test_modules_on_one_path_share_one_cache(
    runtime: str, path: Path, device: Any, log: Log
) -> None:
    plans = [make_plan(name) for name in "abc"]
    for is_warm in (False, True):
        with info():
            modules = [start(runtime, plan, path) for plan in plans]
            assert len({cache_of(module) for module in modules}) == 1
            while len(modules) > 1:
                del modules[0]
            assert path.exists() == is_warm
            begun = log.lines()
            modules.clear()
            ended = log.lines()
        assert count(begun, "Loaded ") == is_warm
        assert count(begun, "Saved ") == 0
        assert count(ended, "Saved ") == (not is_warm)
        assert count(ended, "There are no new kernels") == is_warm
    assert kernels_missing(runtime, path, *plans) == 0


def test_is_dropped_when_the_last_module_lets_it_go(
    runtime: str, path: Path, device: Any
) -> None:
    module = start(runtime, make_plan("a"), path)
    cache = weakref.ref(cache_of(module))
    del module
    assert cache() is None
    assert kernels_missing(runtime, path, make_plan("a")) == 0


def test_one_that_somebody_keeps_serves_no_later_module(
    runtime: str, path: Path, device: Any
) -> None:
    plans = [make_plan(name) for name in "ab"]
    kept = cache_of(start(runtime, plans[0], path))
    assert path.exists() and not kept.autosave_on_del
    module = start(runtime, plans[1], path)
    assert cache_of(module) is not kept
    del module
    assert kept.save() == 0
    assert kernels_missing(runtime, path, *plans) == 0


def test_each_runtime_has_its_own(path: Path, device: Any) -> None:
    plans = [make_plan(name) for name in "ab"]
    modules = [start("cpp", plans[0], path), start("python", plans[1], path)]
    assert cache_of(modules[0]) is not cache_of(modules[1])
    modules.clear()
    assert kernels_missing("cpp", path, *plans) == 0


def test_the_default_path_is_such_a_path(
    runtime: str, tmp_path: Path, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan = make_plan("a")
    file = tmp_path / "relu.engine"
    start(runtime, plan, None).save(file)
    is_python = runtime == "python"
    modules = [torch_tensorrt.load(file, use_python_runtime=is_python) for _ in "ab"]
    assert cache_of(modules[0]) is cache_of(modules[1])
    path = default_runtime_cache_path()
    assert path is not None and cache_of(modules[0]).path == str(path)
    run(modules[0], plan)
    modules.clear()
    assert kernels_missing(runtime, Path(path), plan) == 0


def test_a_failed_save_at_the_end_is_one_warning(
    runtime: str, tmp_path: Path, device: Any, log: Log
) -> None:
    path = tmp_path / "gone" / "cache.bin"
    path.parent.mkdir()
    modules = [start(runtime, make_plan(name), path) for name in "ab"]
    shutil.rmtree(path.parent)
    log.lines()
    modules.clear()
    (warning,) = log.warnings()
    assert f"Can't save the runtime cache '{path}': " in warning


# Paths that are the same.


def test_spellings_of_one_directory_are_one_path(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "directory"
    (directory / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(directory)
    monkeypatch.chdir(tmp_path)
    spellings = [
        str(directory / "cache.bin"),
        str(tmp_path / "link" / "cache.bin"),
        f"{directory}/sub/../cache.bin",
        f"{directory}//./cache.bin",
        "directory/cache.bin",
        "link/sub/../cache.bin",
    ]
    plan = make_plan("a")
    modules = [start_later(runtime, plan, spelling) for spelling in spellings]
    assert len({cache_of(module) for module in modules}) == 1
    assert cache_of(modules[0]).path == spellings[0]


def start_later(
    runtime: str, plan: Plan, cache: RuntimeCache | Path | str
) -> TorchTensorRTModule:
    """A module that has not run."""
    return TorchTensorRTModule(
        plan.engine,
        plan.inputs,
        plan.outputs,
        runtime_settings=RuntimeSettings(runtime_cache=cache),
        use_python_runtime=runtime == "python",
    )


def test_another_name_of_the_file_is_another_path(runtime: str, path: Path) -> None:
    link = path.with_name("link.bin")
    link.symlink_to(path)
    plan = make_plan("a")
    modules = [start_later(runtime, plan, name) for name in (path, link)]
    assert cache_of(modules[0]) is not cache_of(modules[1])


def test_a_relative_path_is_made_absolute_when_it_is_set(
    runtime: str, tmp_path: Path, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "before")
    settings = RuntimeSettings(runtime_cache="../before/cache.bin")
    assert settings.runtime_cache == f"{tmp_path}/before/../before/cache.bin"
    monkeypatch.chdir(tmp_path / "after")
    plan = make_plan("a")
    module = start(runtime, plan, None)
    module.runtime_settings = settings
    run(module, plan)
    del module
    assert names_in(tmp_path / "after") == set()
    assert kernels_missing(runtime, tmp_path / "before" / "cache.bin", plan) == 0


def test_a_relative_path_wants_a_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    text = "the path 'cache.bin' of a runtime cache absolute: No such file or directory"
    with pytest.raises(FileNotFoundError, match=text):
        RuntimeSettings(runtime_cache="cache.bin")
    assert RuntimeSettings(runtime_cache="/cache.bin").runtime_cache == "/cache.bin"
    with pytest.raises(RuntimeError, match=text):
        torch.classes.tensorrt.RuntimeCacheHandle.for_path("cache.bin")


# With caches of the user.


def test_caches_of_the_user_are_objects_of_their_own(
    runtime: str, path: Path, device: Any
) -> None:
    plans = [make_plan(name) for name in "abc"]
    module = start(runtime, plans[0], path)
    other = start(runtime, plans[1], path)
    with runtime_cache(other, path) as for_a_block:
        assert for_a_block is not cache_of(module)
        run(other, plans[1])
    own = make_cache(runtime, path, autosave=True)
    third = start(runtime, plans[2], own)
    assert len({own, for_a_block, cache_of(module)}) == 3
    assert cache_of(other) is cache_of(module)
    del module, other, third, own
    assert kernels_missing(runtime, path, *plans) == 0


# Settings that drop a path and take it again.


def test_a_module_that_is_switched_away_lets_it_go(
    runtime: str, path: Path, device: Any
) -> None:
    plans = [make_plan(name) for name in "ab"]
    module = start(runtime, plans[0], path)
    module.runtime_settings = RuntimeSettings()
    assert kernels_missing(runtime, path, plans[0]) == 0
    module.runtime_settings = RuntimeSettings(runtime_cache=path)
    other = start(runtime, plans[1], path)
    assert cache_of(other) is cache_of(module)
    del other
    assert kernels_missing(runtime, path, plans[1]) > 0
    del module
    assert kernels_missing(runtime, path, *plans) == 0


def test_a_block_gives_the_very_cache_back(
    runtime: str, path: Path, device: Any
) -> None:
    plans = [make_plan(name) for name in "ab"]
    module = start(runtime, plans[0], path)
    before = cache_of(module)
    with runtime_config(module, runtime_cache=None):
        assert kernels_missing(runtime, path, plans[0]) == 0
    other = start(runtime, plans[1], path)
    assert before is cache_of(module) is cache_of(other)
    del before, module, other
    assert kernels_missing(runtime, path, *plans) == 0


def test_a_cache_that_is_given_back_beside_a_new_one_loses_nothing(
    runtime: str, path: Path, device: Any
) -> None:
    plans = [make_plan(name) for name in "abc"]
    module = start(runtime, plans[0], path)
    before = cache_of(module)
    with runtime_config(module, runtime_cache=None):
        during = start(runtime, plans[1], path)
        assert cache_of(during) is not before
    assert cache_of(module) is before
    third = start(runtime, plans[2], before)
    del before, module, third, during
    assert kernels_missing(runtime, path, *plans) == 0


def test_what_ends_under_the_tables_lock_is_saved_without_it(
    runtime: str, path: Path, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The garbage collector may end an engine at any point."""
    modules = [start(runtime, make_plan("a"), path)]
    make_handle = implementation._make_handle

    def make_handle_and_end_module(*arguments: Any, **options: Any) -> Any:
        modules.clear()
        return make_handle(*arguments, **options)

    monkeypatch.setattr(implementation, "_make_handle", make_handle_and_end_module)
    elsewhere = path.with_name("elsewhere.bin")
    with FileLock(f"{path}.lock"):
        making = threading.Thread(target=path_cache, args=(runtime, elsewhere))
        making.start()
        while modules:
            pass
        path_cache(runtime, path.with_name("third.bin"))
        assert making.is_alive()
    making.join()
    assert kernels_missing(runtime, path, make_plan("a")) == 0


# Threads.


def test_threads_that_set_a_path_at_once_get_one_cache(
    runtime: str, path: Path, device: Any
) -> None:
    plans = [make_plan(name) for name in "abcdefgh"]
    at_once = threading.Barrier(len(plans))
    modules: list[TorchTensorRTModule] = []

    def set_path(plan: Plan) -> None:
        at_once.wait(DEADLINE)
        modules.append(start(runtime, plan, path))

    threads = [threading.Thread(target=set_path, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(modules) == len(plans)
    assert len({cache_of(module) for module in modules}) == 1
    modules.clear()
    assert kernels_missing(runtime, path, *plans) == 0


def test_threads_that_come_and_go_lose_nothing(
    runtime: str, path: Path, device: Any
) -> None:
    plans = [make_plan(name) for name in "abcdefgh"]
    half = len(plans) // 2

    def come_and_go(plans: list[Plan]) -> None:
        for plan in plans:
            module = start(runtime, plan, path)
            module.runtime_settings = RuntimeSettings()
            module.runtime_settings = RuntimeSettings(runtime_cache=path)

    threads = [
        threading.Thread(target=come_and_go, args=(some,))
        for some in (plans[:half], plans[half:])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kernels_missing(runtime, path, *plans) == 0


# Forks, each in its own interpreter. A child that hangs is killed after 60 s.

FORK = """
import gc, os, signal, sys, threading, time, warnings
from torch_tensorrt.runtime import _runtime_cache
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
use_device()
runtime, path, *plans = sys.argv[1:]
plans = [Plan.read(plan) for plan in plans]
def fork(child):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        child()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

CHILD_ENDS = """
module = start(runtime, plans[0], path)
print(fork(lambda: os._exit(3)), os.path.exists(path))
"""

CHILD_DROPS = """
module = start(runtime, plans[0], path)
def child():
    module.runtime_settings = module.runtime_settings.merge(runtime_cache=None)
print(fork(child), os.path.exists(path))
"""

CHILD_STARTS = """
module = start(runtime, plans[0], path)
def child():
    theirs = start(runtime, plans[1], path)
    assert theirs.runtime_settings.runtime_cache is not module.runtime_settings.runtime_cache
    assert theirs.runtime_settings.runtime_cache.is_cpp_runtime() == (runtime == "cpp")
    del theirs
    assert os.path.exists(path)
print(fork(child), kernels_missing(runtime, Path(path), plans[1]))
"""

# Other threads make caches and drop them in the meantime.
CHILD_OF_A_BUSY_PARENT = """
is_done = False
def make_caches():
    while not is_done:
        _runtime_cache.path_cache(path, use_python_runtime=runtime == "python")
threads = [threading.Thread(target=make_caches) for _ in range(2)]
for thread in threads:
    thread.start()
def child():
    _runtime_cache.path_cache(path, use_python_runtime=runtime == "python")
print({fork(child) for _ in range(50)})
is_done = True
"""


def run_fork(code: str, runtime: str, path: Path, *plans: Plan) -> str:
    files = [plan.write(path.with_name(f"plan{i}")) for i, plan in enumerate(plans)]
    ended = run_interpreter(FORK + code, runtime, path, *files)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@NO_FORK_ON_GPU
@pytest.mark.parametrize(
    ("code", "status"),
    [(CHILD_ENDS, 3), (CHILD_DROPS, 0)],
    ids=["os._exit", "settings"],
)
def test_a_forked_child_saves_nothing_of_its_parent(
    runtime: str, path: Path, code: str, status: int
) -> None:
    plan = make_plan("a")
    assert run_fork(code, runtime, path, plan) == f"{status} False\n"
    assert kernels_missing(runtime, path, plan) == 0


@NO_FORK_ON_GPU
def test_a_forked_child_has_caches_of_its_own(runtime: str, path: Path) -> None:
    plans = [make_plan(name) for name in "ab"]
    assert run_fork(CHILD_STARTS, runtime, path, *plans) == "0 0\n"
    assert kernels_missing(runtime, path, *plans) == 0


def test_a_fork_while_threads_make_caches(runtime: str, path: Path) -> None:
    assert run_fork(CHILD_OF_A_BUSY_PARENT, runtime, path) == "{0}\n"


# Copies.


@SIMULATED
@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy])
def test_a_copied_module_shares_the_cache_without_serializing_it(
    runtime: str, path: Path, device: Any, duplicate: Callable[[Any], Any]
) -> None:
    module = start(runtime, make_plan("a"), path)
    device.reset_counters()
    assert duplicate(cache_of(module)) is cache_of(module)
    other = copy.deepcopy(module)
    assert cache_of(other) is cache_of(module)
    assert device.calls("IRuntimeCache::serialize") == 0
    run(other, make_plan("a"))
    assert device.counters()["compilations"] == 0
    del module
    gc.collect()
    assert not path.exists()
    del other
    assert kernels_missing(runtime, path, make_plan("a")) == 0


@pytest.mark.parametrize("duplicate", [unpickled, reloaded])
def test_a_pickled_module_joins_the_cache(
    runtime: str,
    path: Path,
    device: Any,
    duplicate: Callable[[torch.nn.Module], TorchTensorRTModule],
) -> None:
    plans = [make_plan(name) for name in "ab"]
    module = start(runtime, plans[0], path)
    other = duplicate(module)
    assert cache_of(other) is cache_of(module)
    later = start(runtime, plans[1], path)
    assert cache_of(later) is cache_of(module)
    del module, later
    assert not path.exists()
    del other
    assert kernels_missing(runtime, path, *plans) == 0


def test_replicas_of_data_parallel_share_the_cache(
    runtime: str, path: Path, device: Any
) -> None:
    plan = make_plan("a")
    module = start(runtime, plan, path)
    replicas = [module._replicate_for_data_parallel() for _ in "ab"]
    for replica in replicas:
        assert cache_of(replica) is cache_of(module)
        run(replica, plan)
    del replica, replicas
    assert not path.exists()
    assert path_cache(runtime, path) is cache_of(module)
    del module
    assert kernels_missing(runtime, path, plan) == 0


def unpickle_beside(
    pickled: bytes, runtime: str, plan: Plan | None, path: Path
) -> tuple[bool, int]:
    """Whether an unpickled module has the cache of a module of `plan`, and its cache's size."""
    module = None if plan is None else start(runtime, plan, path)
    other = pickle.loads(pickled)
    is_one = module is not None and cache_of(other) is cache_of(module)
    return is_one, cache_of(other)._handle.serialize().numel()


@pytest.fixture
def child() -> Any:
    with children(1) as (child,):
        yield child


def test_another_process_takes_the_bytes_if_it_has_neither_cache_nor_file(
    runtime: str, path: Path, device: Any, child: Child
) -> None:
    plan = make_plan("a")
    module = start(runtime, plan, path)
    pickled = pickle.dumps(module)
    size = cache_of(module)._handle.serialize().numel()
    assert child(unpickle_beside, pickled, runtime, None, path) == (False, size)
    # The child saved the kernels that it took.
    assert kernels_missing(runtime, path, plan) == 0
    assert child(unpickle_beside, pickled, runtime, None, path) == (False, 0)
    path.unlink()
    other_plan = make_plan("longer name")
    is_one, other_size = child(unpickle_beside, pickled, runtime, other_plan, path)
    assert is_one and other_size != size
    assert kernels_missing(runtime, path, plan) > 0


# A cache that C++ code uses too.


@SIMULATED
@pytest.mark.parametrize("first", ["module", "engine"])
def test_an_engine_of_cpp_code_shares_the_contents(
    path: Path, device: Any, log: Log, first: str
) -> None:
    plans = [make_plan(name) for name in "ab"]

    def start_engine() -> Any:
        handle = torch.classes.tensorrt.RuntimeCacheHandle.for_path(str(path))
        engine = torch.classes.tensorrt.Engine(
            to_tensor(plans[1].engine), plans[1].inputs, plans[1].outputs
        )
        engine.set_runtime_settings("lazy", "disabled", handle)
        torch.ops.tensorrt.execute_engine([torch.zeros(plans[1].shape)], engine)
        return engine

    ends: dict[str, Any] = {"engine": start_engine()}
    with info():
        ends["module"] = start("cpp", plans[0], path)
        device.reset_counters()
        run(start("cpp", plans[1], path), plans[1])
        assert device.counters()["compilations"] == 0
        log.lines()
        del ends[first]
        assert path.exists() == (first == "module")
        ends.clear()
        lines = log.lines()
    assert count(lines, "Saved ") == 1
    assert kernels_missing("cpp", path, *plans) == 0


@SIMULATED
def test_what_cpp_code_compiles_after_the_last_module_is_saved(
    path: Path, device: Any
) -> None:
    handle = torch.classes.tensorrt.RuntimeCacheHandle.for_path(str(path))
    plans = [make_plan(name) for name in "ab"]
    for _ in range(2):  # the module's cache ends and begins again
        module = start("cpp", plans[0], path)
        with runtime_config(module, runtime_cache=None):
            pass
        del module
    engine = torch.classes.tensorrt.Engine(
        to_tensor(plans[1].engine), plans[1].inputs, plans[1].outputs
    )
    engine.set_runtime_settings("lazy", "disabled", handle)
    torch.ops.tensorrt.execute_engine([torch.zeros(plans[1].shape)], engine)
    assert kernels_missing("cpp", path, plans[1]) > 0
    del engine
    assert kernels_missing("cpp", path, *plans) == 0
