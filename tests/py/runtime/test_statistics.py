"""The record of a cache's work: its statistics, its summary line, and the profiler's ranges."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests.py.runtime.programs import Programs
from tests.py.runtime.runtime_cache_testing import Log
from tests.py.runtime.runtime_testing import (
    make_cache,
    make_plan,
    start,
    start_and_save,
    uses_gpu,
    wait_until,
)
from torch_tensorrt.logging import info
from torch_tensorrt.runtime import RuntimeCache, RuntimeCacheStatistics

SIMULATED = pytest.mark.skipif(
    uses_gpu(), reason="needs programs on a simulated device"
)


def cache_of(module: torch.nn.Module) -> RuntimeCache:
    cache = getattr(module, "runtime_settings").runtime_cache
    assert isinstance(cache, RuntimeCache)
    return cache


def test_a_new_cache_did_nothing(runtime: str, path: Path) -> None:
    statistics = make_cache(runtime, path).statistics()
    assert statistics == RuntimeCacheStatistics(
        bytes_loaded=0,
        loaded_from="",
        rejections=0,
        last_rejection="",
        saves=0,
        checkpoints=0,
        bytes_written=0,
        merges=0,
        conflicts=0,
        lock_wait=0.0,
        size=0,
        size_added=0,
        last_save_time=None,
    )
    for field in dataclasses.fields(statistics):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(statistics, field.name, 1)


def test_a_save_counts_if_it_writes(runtime: str, path: Path, device: Any) -> None:
    cache = make_cache(runtime, path)
    module = start(runtime, make_plan("a"), cache)
    assert cache.statistics().saves == 0
    before = time.time()
    for _ in range(2):
        cache.save()
        statistics = cache.statistics()
        size = path.stat().st_size
        assert (statistics.saves, statistics.checkpoints) == (1, 0)
        assert statistics.bytes_written == statistics.size == size
        assert statistics.last_save_time is not None
        assert before - 1 <= statistics.last_save_time <= time.time() + 1
    other = start(runtime, make_plan("b"), cache)
    cache.save()
    statistics = cache.statistics()
    assert statistics.saves == 2
    assert statistics.bytes_written == size + path.stat().st_size
    assert (statistics.merges, statistics.rejections) == (0, 0)
    del module, other


def test_a_checkpoint_counts_for_itself(runtime: str, path: Path, device: Any) -> None:
    module = start(runtime, make_plan("a"), path)
    cache = cache_of(module)
    wait_until(lambda: cache.statistics().checkpoints == 1)
    statistics = cache.statistics()
    assert statistics.saves == 0
    assert statistics.bytes_written == path.stat().st_size
    assert statistics.last_save_time is not None


def test_what_was_loaded_is_told_from_what_was_compiled_after_all(
    runtime: str, path: Path, device: Any
) -> None:
    start_and_save(runtime, path, make_plan("a"))
    size = path.stat().st_size
    cache = make_cache(runtime, path)
    cache.load()
    loaded = cache.statistics()
    assert (loaded.bytes_loaded, loaded.loaded_from) == (size, str(path))
    assert (loaded.size, loaded.size_added) == (size, 0)
    modules = [start(runtime, make_plan("a"), cache)]
    assert cache.statistics() == loaded
    modules.append(start(runtime, make_plan("b"), cache))
    statistics = cache.statistics()
    assert statistics.bytes_loaded == size
    assert statistics.size_added == statistics.size - size > 0


def test_an_engine_loads_the_caches_file(runtime: str, path: Path, device: Any) -> None:
    start_and_save(runtime, path, make_plan("a"))
    module = start(runtime, make_plan("a"), path)
    statistics = cache_of(module).statistics()
    assert statistics.loaded_from == str(path)
    assert statistics.bytes_loaded == statistics.size == path.stat().st_size
    assert statistics.size_added == 0


def test_a_rejection_counts_and_says_why(
    runtime: str, path: Path, device: Any, log: Log
) -> None:
    path.write_bytes(b"damaged")
    module = start(runtime, make_plan("a"), path)
    statistics = cache_of(module).statistics()
    (warning,) = log.warnings()
    assert statistics.rejections == 1
    assert f"TensorRT-RTX rejected the 7 bytes of the runtime cache '{path}'" in warning
    assert warning.endswith(statistics.last_rejection)
    assert statistics.last_rejection.startswith("TensorRT-RTX rejected the 7 bytes")
    assert statistics.size_added > 0
    del module


def test_the_last_rejection_is_the_one_that_was_logged_last(
    runtime: str, path: Path, device: Any, log: Log
) -> None:
    cache = make_cache(runtime, path)
    modules = [start(runtime, make_plan("a"), cache)]
    cache.save()
    for name in "bc":
        path.write_bytes(b"damaged")  # replaces what the cache saved
        modules.append(start(runtime, make_plan(name), cache))
        cache.save()
    statistics = cache.statistics()
    assert statistics.rejections == 2
    assert "no longer overwrites it" in statistics.last_rejection
    assert log.warnings()[-1].endswith(statistics.last_rejection)


def test_merges_and_conflicts_count(runtime: str, path: Path, device: Any) -> None:
    cache = make_cache(runtime, path)
    module = start(runtime, make_plan("a"), cache)
    start_and_save(runtime, path, make_plan("b"))
    cache.save()
    statistics = cache.statistics()
    assert (statistics.merges, statistics.conflicts) == (1, 1)
    assert statistics.saves == 1
    assert statistics.bytes_written == path.stat().st_size > statistics.size
    del module


def test_waits_for_locks_count(runtime: str, path: Path, device: Any) -> None:
    cache = make_cache(runtime, path)
    module = start(runtime, make_plan("a"), cache)
    before, begin = cache.statistics().lock_wait, time.monotonic()
    with FileLock(f"{path}.lock"):
        saving = threading.Thread(target=cache.save)
        saving.start()
        time.sleep(1)
    saving.join()
    waited = cache.statistics().lock_wait - before
    assert 0.1 < waited < time.monotonic() - begin
    del module


# The summary line at a cache's end.

SUMMARY = re.compile(
    r"The runtime cache '(?P<path>.*)': (\d+) bytes loaded, (\d+) bytes now, (\d+) of them "
    r"new; (\d+) saves and (\d+) checkpoints wrote (\d+) bytes; (\d+) merges, (\d+) conflicts, "
    r"(\d+) rejections; \d+(?:\.\d+)? s of waiting for locks$"
)


def summaries(lines: list[str], path: Path) -> list[tuple[int, ...]]:
    """The numbers of each summary line except the last number."""
    found = [match for line in lines if (match := SUMMARY.search(line))]
    assert all(match["path"] == str(path) for match in found)
    return [tuple(map(int, match.groups()[1:])) for match in found]


@pytest.mark.usefixtures("without_checkpoints")
def test_a_path_cache_sums_up_when_its_last_engine_goes(
    runtime: str, path: Path, device: Any, log: Log
) -> None:
    start_and_save(runtime, path, make_plan("a"))
    loaded = path.stat().st_size
    log.lines()
    with info():
        modules = [start(runtime, make_plan(name), path) for name in "ab"]
        modules.pop()
        assert summaries(log.lines(), path) == []
        modules.clear()
        lines = log.lines()
    size = path.stat().st_size
    assert summaries(lines, path) == [
        (loaded, size, size - loaded, 1, 0, size, 0, 0, 0)
    ]
    assert all(line.startswith("INFO:") for line in lines if SUMMARY.search(line))


AT_EXIT = """
os.environ["TORCHTRT_RUNTIME_CACHE_CHECKPOINTS"] = "0"
import torch_tensorrt
torch_tensorrt.logging.set_level("info")
place = PLACE
modules = [start(runtime, plan, place) for plan in plans]
"""


@SIMULATED
@pytest.mark.parametrize("own", [False, True], ids=["path", "own"])
def test_a_cache_sums_up_once_at_exit(
    programs: Programs, runtime: str, path: Path, own: bool
) -> None:
    place = "make_cache(runtime, path, autosave=True)" if own else "path"
    program = programs.run(
        AT_EXIT.replace("PLACE", place),
        runtime=runtime,
        path=path,
        plans=[make_plan(name) for name in "ab"],
    )
    assert program.wait() == 0
    size = path.stat().st_size
    lines = program.stderr.splitlines()
    assert summaries(lines, path) == [(0, size, size, 1, 0, size, 0, 0, 0)]


# The profiler.


def test_the_profiler_shows_load_merge_and_save(
    runtime: str, path: Path, device: Any
) -> None:
    cache = make_cache(runtime, path)
    module = start(runtime, make_plan("a"), cache)
    start_and_save(runtime, path, make_plan("b"))
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True
    ) as profile:
        cache.save()
        make_cache(runtime, path).load()
    ranges = {
        event.key: event.count
        for event in profile.key_averages()
        if event.key.startswith("RuntimeCache:")
    }
    assert ranges == {
        "RuntimeCache:load": 1,
        "RuntimeCache:merge": 1,
        "RuntimeCache:save": 1,
    }
    del module
