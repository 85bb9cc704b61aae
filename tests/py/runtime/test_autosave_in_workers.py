"""Forked children and multiprocessing's workers save their own caches, and only those."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.py.runtime.runtime_testing import (
    kernels_missing,
    make_plan,
    run_interpreter,
    uses_gpu,
)

# In FORK, the child drops one of its parent's caches and exits with the other. CPython 3.12 and
# later warn of forks in processes with threads, such as torch's.
FORKS = """
import warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
"""

FORK = f"""{FORKS}
import io
os.environ["TORCHTRT_RUNTIME_CACHE_CHECKPOINTS"] = "0"  # they could save the cache
use_device()
runtime, path, other_path, plan = sys.argv[1:]
module = start(runtime, Plan.read(plan), path)
other = make_cache(runtime, other_path, autosave=True)
other.load_from_stream(io.BytesIO(b"kernels"))
if os.fork() == 0:
    del other
    sys.exit(5)
_, status = os.wait()
print(os.waitstatus_to_exitcode(status), os.path.exists(path), os.path.exists(other_path))
"""

FORK_THAT_TAKES_OVER = f"""{FORKS}
import io
runtime, path = sys.argv[1:]
cache = make_cache(runtime, path, autosave=True)
cache.load_from_stream(io.BytesIO(b"kernels"))
if os.fork() == 0:
    cache.autosave_on_del = True
    sys.exit(5)
_, status = os.wait()
print(os.waitstatus_to_exitcode(status), os.path.getsize(path))
"""

# The process has a cache before it makes workers. The method "fork" copies the cache to them.
WORKERS = """
import io
if __name__ == "__main__":
    method, runtime, mine, path, pool_path, plan = sys.argv[1:]
    plan = Plan.read(plan)
    cache = make_cache(runtime, mine, autosave=True)
    cache.load_from_stream(io.BytesIO(b"kernels"))
    context = multiprocessing.get_context(method)
    worker = context.Process(target=start_to_stay, args=(runtime, plan, path))
    worker.start()
    worker.join()
    with ProcessPoolExecutor(1, context) as pool:
        pool.submit(start_to_stay, runtime, plan, pool_path).result(DEADLINE)
    print(worker.exitcode, os.path.exists(mine))
"""


@pytest.mark.skipif(uses_gpu(), reason="CUDA does not survive a fork")
def test_a_forked_child_does_not_save_its_parents_cache(
    runtime: str, tmp_path: Path
) -> None:
    path, other_path = tmp_path / "cache.bin", tmp_path / "other.bin"
    plan = make_plan("a")
    ended = run_interpreter(
        FORK, runtime, path, other_path, plan.write(tmp_path / "plan")
    )
    assert (ended.stdout, ended.stderr) == ("5 False False\n", "")
    assert ended.returncode == 0
    assert kernels_missing(runtime, path, plan) == 0
    assert other_path.read_bytes() == b"kernels"


def test_a_forked_child_may_take_a_cache_over(runtime: str, path: Path) -> None:
    ended = run_interpreter(FORK_THAT_TAKES_OVER, runtime, path)
    assert (ended.stdout, ended.stderr) == ("5 7\n", "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_saves_its_own(method: str, runtime: str, tmp_path: Path) -> None:
    mine, path, pool_path = (tmp_path / f"{name}.bin" for name in ("mine", "a", "b"))
    plan = make_plan("a")
    ended = run_interpreter(
        WORKERS, method, runtime, mine, path, pool_path, plan.write(tmp_path / "plan")
    )
    assert (ended.stdout, ended.stderr) == ("0 False\n", "")
    assert mine.read_bytes() == b"kernels"
    assert kernels_missing(runtime, path, plan) == 0
    assert kernels_missing(runtime, pool_path, plan) == 0
