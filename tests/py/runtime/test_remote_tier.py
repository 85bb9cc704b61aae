"""Processes with a runtime cache on an object store, each on its own machine."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.py.runtime.fleet_testing import (
    BUCKET,
    OBJECT,
    PATIENT,
    SUMMARY,
    all_of,
    kernels_of,
    start_machine,
    tier_of,
)
from tests.py.runtime.live_handles import kernels_on_disk
from tests.py.runtime.programs import Program, Programs
from tests.py.runtime.runtime_cache_testing import RUNTIMES
from tests.py.runtime.runtime_testing import KERNELS, uses_gpu, wait_until
from tests.util.servers.object_servers import (
    FaultyProxy,
    MotoServer,
    environment_of_client,
)
from torchtrt_cache.store_process import StoreProcess

pytestmark = pytest.mark.skipif(uses_gpu(), reason="simulates kinds of machine")

COMPILE_A = """
say(compile_("a"))
"""
GARBAGE = b"no kernels" * 20

Machine = Callable[..., Program]

numbers = itertools.count()  # the numbers of the buckets


@pytest.fixture(scope="module")
def server() -> Iterator[MotoServer]:
    moto = MotoServer()
    yield moto
    moto.kill()


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    programs = Programs()
    yield programs
    programs.close()


@pytest.fixture
def url(server: MotoServer) -> str:
    """A URL below which no other test has objects."""
    bucket = f"{BUCKET}-{next(numbers)}"
    server.create_bucket(bucket)
    return f"s3://{bucket}/kernels/"


@pytest.fixture
def proxy(server: MotoServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def store(
    server: MotoServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StoreProcess]:
    for name, value in environment_of_client(server.port).items():
        monkeypatch.setenv(name, value)
    store = StoreProcess(url)
    yield store
    store.close()


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    runtime: str = request.param
    return runtime


@pytest.fixture
def machine(
    programs: Programs, runtime: str, proxy: FaultyProxy, url: str, tmp_path: Path
) -> Machine:
    """Starts a program on the machine of that name."""

    def start(
        name: str, code: str, query: str = PATIENT, gpu: str | None = None
    ) -> Program:
        arguments = {"gpu": gpu} if gpu else {}
        return start_machine(
            programs,
            runtime,
            proxy.port,
            tmp_path / name,
            code,
            url=url + query,
            **arguments,
        )

    return start


def outcome(program: Program) -> tuple[str, list[str]]:
    """Returns the output and the warnings of a program, which must end well."""
    status, out, err = program.outcome
    assert status == 0, err
    assert "Traceback" not in err
    return out, [line for line in err.splitlines() if SUMMARY in line]


def test_what_one_machine_compiles_another_one_does_not(
    machine: Machine, store: StoreProcess, proxy: FaultyProxy
) -> None:
    assert outcome(machine("first", COMPILE_A)) == (f"{KERNELS}\n", [])
    assert kernels_of(store) == all_of("a")
    assert outcome(machine("second", COMPILE_A)) == ("0\n", [])
    assert proxy.count("PUT") == 1


def test_two_machines_keep_what_both_compiled(
    machine: Machine, store: StoreProcess, url: str, tmp_path: Path
) -> None:
    code = "compile_(name)\nsay('ready')\nsys.stdin.readline()"
    first = machine("first", f"name = 'a'\n{code}")
    second = machine("second", f"name = 'b'\n{code}")
    for program in (first, second):
        assert program.hear() == "ready"
        program.tell()
        outcome(program)
    assert kernels_of(store) == all_of("a", "b")
    file = tier_of(tmp_path / "second", url) / OBJECT
    assert set(kernels_on_disk(file)) == all_of("a", "b")
    # Both have changed their caches since, so they merge at the start.
    for name in ("first", "second"):
        assert outcome(machine(name, "say(compile_('a', 'b'))")) == ("0\n", [])


def test_kernels_of_both_sides_are_merged_before_an_engine_starts(
    machine: Machine, proxy: FaultyProxy
) -> None:
    proxy.refuse()
    _, warnings = outcome(machine("first", COMPILE_A))
    assert len(warnings) == 1
    proxy.heal()
    outcome(machine("second", "compile_('b')"))
    assert outcome(machine("first", "say(compile_('a', 'b'))")) == ("0\n", [])


def test_a_running_process_uploads(machine: Machine, store: StoreProcess) -> None:
    program = machine("first", f"{COMPILE_A}sys.stdin.readline()")
    assert program.hear() == f"{KERNELS}"
    wait_until(lambda: kernels_of(store) == all_of("a"))
    program.kill()


def test_what_a_killed_process_did_not_upload_the_next_one_does(
    machine: Machine, store: StoreProcess, url: str, tmp_path: Path
) -> None:
    program = machine("first", f"{COMPILE_A}sys.stdin.readline()")
    file = tier_of(tmp_path / "first", url) / OBJECT
    wait_until(lambda: file.exists() and set(kernels_on_disk(file)) == all_of("a"))
    program.kill()
    assert kernels_of(store) == set()
    assert outcome(machine("first", COMPILE_A)) == ("0\n", [])
    assert kernels_of(store) == all_of("a")


def test_a_signal_uploads(machine: Machine, store: StoreProcess) -> None:
    program = machine(
        "first",
        f"""
torch_tensorrt.runtime.save_on_signal(signal.SIGTERM)
{COMPILE_A}
while True:  # A signal does not end a system call that begins just after it.
    time.sleep(0.01)
""",
    )
    program.hear()
    program.send(signal.SIGTERM)
    assert program.wait() == -signal.SIGTERM
    assert kernels_of(store) == all_of("a")


FAULTS: dict[str, Callable[[FaultyProxy], None]] = {
    "refuses": lambda proxy: proxy.refuse(),
    "hangs": lambda proxy: proxy.hang(),
    "500": lambda proxy: proxy.reject(500, "InternalError"),
    "403": lambda proxy: proxy.reject(403, "AccessDenied"),
    "no bucket": lambda proxy: proxy.reject(404, "NoSuchBucket"),
    "truncates": lambda proxy: proxy.truncate(),
    "slow": lambda proxy: proxy.slow_down(1e5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_fails_costs_one_warning_and_loses_nothing(
    machine: Machine,
    store: StoreProcess,
    proxy: FaultyProxy,
    url: str,
    tmp_path: Path,
    fault: str,
) -> None:
    outcome(machine("other", "compile_('b')"))
    FAULTS[fault](proxy)
    _, warnings = outcome(machine("first", COMPILE_A, "?first_byte_timeout=1"))
    (warning,) = warnings
    assert f"'{url}'" in warning and warning.endswith(
        "Nothing is lost: this machine's kernels are in "
        f"'{tier_of(tmp_path / 'first', url)}/'"
    )
    file = tier_of(tmp_path / "first", url) / OBJECT
    assert all_of("a") <= set(kernels_on_disk(file))
    proxy.heal()
    assert outcome(machine("first", "say(compile_('a', 'b'))")) == ("0\n", [])
    assert kernels_of(store) == all_of("a", "b")


@pytest.mark.parametrize(
    "query", ["?first_byte_timeout=0.1", "?mode=read&first_byte_timeout=0.1"]
)
def test_an_end_without_news_does_not_wait_for_a_store_that_hangs(
    machine: Machine, proxy: FaultyProxy, query: str
) -> None:
    outcome(machine("first", "compile_('a')"))
    proxy.hang()
    code = """
say(compile_("a"))
(module,) = modules
tier = module.runtime_settings.runtime_cache._tier
say(tier.begin_push(time.monotonic() + 60).done())
"""
    said, warnings = outcome(machine("first", code, query))
    assert said == "0\nTrue\n"
    (warning,) = warnings
    assert "no answer within 0.1 s" in warning


def test_what_comes_too_late_goes_to_the_file_alone(
    machine: Machine, proxy: FaultyProxy, url: str, tmp_path: Path
) -> None:
    outcome(machine("other", "compile_('b')"))
    proxy.hang()
    program = machine(
        "first",
        "say(compile_('b'))\nsys.stdin.readline()\nsay(compile_('b'))",
        "?first_byte_timeout=0.1",
    )
    assert program.hear() == f"{KERNELS}"
    proxy.heal()
    program.tell()
    assert program.hear() == f"{KERNELS}"
    outcome(program)


def test_a_read_only_url_is_never_written_to(
    machine: Machine, store: StoreProcess, proxy: FaultyProxy
) -> None:
    outcome(machine("other", "compile_('b')"))
    puts = proxy.count("PUT")
    said = outcome(machine("first", "say(compile_('a', 'b'))", f"{PATIENT}&mode=read"))
    assert said == (f"{KERNELS}\n", [])
    outcome(machine("other", "compile_('c')"))
    # The machine keeps what it compiled, and adds what came from others.
    said = outcome(
        machine("first", "say(compile_('a', 'b', 'c'))", f"{PATIENT}&mode=read")
    )
    assert said == ("0\n", [])
    assert proxy.count("PUT") == puts + 1
    assert kernels_of(store) == all_of("b", "c")


def test_two_kinds_of_gpu_have_an_object_each(
    machine: Machine, store: StoreProcess
) -> None:
    for name in ("first", "second"):
        gpu = f"GPU {name}"
        assert outcome(machine(name, COMPILE_A, gpu=gpu)) == (f"{KERNELS}\n", [])
    names = {
        OBJECT.replace("simulated-rtx-gpu", f"gpu-{n}") for n in ("first", "second")
    }
    assert set(store.names()) == names
    assert all(kernels_of(store, name) == all_of("a") for name in names)


def test_an_object_that_is_no_cache_stays_with_one_warning(
    machine: Machine, store: StoreProcess, proxy: FaultyProxy, url: str, tmp_path: Path
) -> None:
    store.replace(OBJECT, memoryview(GARBAGE), None)
    for compiled in (KERNELS, 0):
        said, warnings = outcome(machine("first", COMPILE_A))
        assert (said, len(warnings)) == (f"{compiled}\n", 1)
    contents = store.read(OBJECT)
    assert contents is not None and bytes(contents.data) == GARBAGE
    assert proxy.count("PUT") == 0
    file = tier_of(tmp_path / "first", url) / OBJECT
    assert set(kernels_on_disk(file)) == all_of("a")


def test_a_child_of_fork_has_a_connection_of_its_own(
    machine: Machine, store: StoreProcess
) -> None:
    code = """
compile_("a")
save_all_within(60)
child = os.fork()
compile_("b" if child == 0 else "c")
if child:
    assert os.waitpid(child, 0) == (child, 0)
"""
    outcome(machine("first", code))
    assert kernels_of(store) == all_of("a", "b", "c")


def test_a_worker_of_multiprocessing_uploads(
    machine: Machine, store: StoreProcess
) -> None:
    code = """
import multiprocessing
worker = multiprocessing.get_context("fork").Process(target=compile_, args=("a",))
worker.start()
worker.join()
assert worker.exitcode == 0
"""
    outcome(machine("first", code))
    assert kernels_of(store) == all_of("a")


def test_a_save_without_an_engine_is_uploaded(
    machine: Machine, store: StoreProcess
) -> None:
    code = """
import io
stream = io.BytesIO()
kernels = make_cache(runtime)
compile_("a", place=kernels)
kernels.save_to_stream(stream)
stream.seek(0)
cache = make_cache(runtime, url)
cache.load_from_stream(stream)
assert cache.save() > 0
wait_until(lambda: cache._tier._kinds)  # otherwise the upload is left to the next start
"""
    outcome(machine("first", code))
    assert kernels_of(store) == all_of("a")


def test_a_cache_of_its_own_on_a_url(machine: Machine, store: StoreProcess) -> None:
    code = """
import copy, pickle
cache = make_cache(runtime, url)
assert cache.path == url
compile_("a", place=cache)
assert cache.save() > 0
save_all_within(60)
copied = pickle.loads(pickle.dumps(cache))
assert copied.path == copy.copy(cache).path == url
say(make_cache(runtime, url).load() > 0)
"""
    # No cache has autosave on, so nothing has begun before load() fetches the object.
    assert outcome(machine("first", code))[0] == "True\n"
    assert kernels_of(store) == all_of("a")
