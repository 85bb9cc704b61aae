"""Fleets of both runtimes on one object store: simultaneous starts, random kills, one download."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, count, cycle
from pathlib import Path

import pytest

from tests.py.runtime.fleet_testing import (
    BUCKET,
    OBJECT,
    PATIENT,
    all_of,
    kernels_of,
    start_machine,
    tier_of,
)
from tests.py.runtime.programs import Program, Programs
from tests.py.runtime.runtime_cache_testing import RUNTIMES
from tests.py.runtime.runtime_testing import DEADLINE, KERNELS, uses_gpu
from tests.util.servers.object_servers import (
    FaultyProxy,
    MotoServer,
    VersityServer,
    environment_of_client,
    versity_program,
)
from torchtrt_cache.store_process import StoreProcess

pytestmark = pytest.mark.skipif(uses_gpu(), reason="simulates kinds of machine")

MACHINES = 32
KILLS = 8  # in each round
ROUNDS = 5
LONGEST_LAST_WORD = 5.0  # seconds
PUTS = 4  # the maximum for a fleet whose machines do equal work

# Compiles on command. The process waits for the upload, which its end might not leave time for.
TOLD = """
say("ready")
sys.stdin.readline()
say(compile_(*names))
save_all_within(200)
"""

# Keeps compiling and saving, and prints the kernels that the object has.
SAVING = """
from itertools import count
from tests.py.runtime.live_handles import kernels_on_disk
from torchtrt_cache.records import read_record
from torchtrt_cache.runtime_cache_file import generation_at
for i in count():
    compile_(f"{name}-{i}.")
    save_all_within(60)
    # The file only grows, so the file compared with the record has at least these kernels.
    kernels = kernels_on_disk(file)
    record = read_record(str(file), url)
    if record and record.is_uploaded and record.file == generation_at(str(file)):
        say(*(kernel for kernel in kernels if kernel.startswith(f"{name}-")))
"""

numbers = count()  # the numbers of the buckets


@pytest.fixture(scope="module", params=["moto", "versity"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MotoServer | VersityServer]:
    server: MotoServer | VersityServer
    if request.param == "moto":
        server = MotoServer()
    else:
        program = versity_program()
        if program is None:
            pytest.skip("versitygw can't be installed")
        server = VersityServer(program, tmp_path_factory.mktemp("buckets"))
    yield server
    server.kill()


@pytest.fixture
def url(server: MotoServer | VersityServer) -> str:
    """A URL below which no other test has objects."""
    bucket = f"{BUCKET}-{next(numbers)}"
    server.create_bucket(bucket)
    return f"s3://{bucket}/kernels/"


@pytest.fixture
def proxy(server: MotoServer | VersityServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def store(
    server: MotoServer | VersityServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StoreProcess]:
    for name, value in environment_of_client(server.port).items():
        monkeypatch.setenv(name, value)
    store = StoreProcess(url)
    yield store
    store.close()


def puts(proxy: FaultyProxy) -> int:
    return sum(
        number
        for (method, _, status), number in proxy.replies.items()
        if method == "PUT" and status == 200
    )


def release(programs: list[Program]) -> list[str]:
    """Tells all programs to continue at once. Returns the line that each one prints."""
    for program in programs:
        assert program.hear() == "ready"
    for program in programs:
        program.tell()
    for program in programs:
        status, _, err = program.outcome
        assert status == 0, err
        assert "Traceback" not in err
    return [program.hear() for program in programs]


def test_a_cold_fleet_of_equal_machines_uploads_once_or_so(
    programs: Programs,
    proxy: FaultyProxy,
    store: StoreProcess,
    url: str,
    tmp_path: Path,
) -> None:
    def machine(number: int, runtime: str) -> Program:
        directory = tmp_path / f"{number}"
        return start_machine(
            programs,
            runtime,
            proxy.port,
            directory,
            TOLD,
            url=url + PATIENT,
            names=["a", "b"],
        )

    fleet = list(map(machine, range(MACHINES), cycle(RUNTIMES)))
    release(fleet)
    assert kernels_of(store) == all_of("a", "b")
    assert 1 <= puts(proxy) <= PUTS
    number = puts(proxy)
    for runtime in RUNTIMES:
        assert release([machine(MACHINES + len(runtime), runtime)]) == ["0"]
    assert puts(proxy) == number


def test_two_kinds_of_machine_in_a_storm_leave_each_others_objects_alone(
    programs: Programs,
    server: MotoServer | VersityServer,
    store: StoreProcess,
    url: str,
    tmp_path: Path,
) -> None:
    gpus = ("GPU 1", "GPU 2")
    objects = [
        OBJECT.replace("simulated-rtx-gpu", f"gpu-{number}") for number in (1, 2)
    ]
    with FaultyProxy(server.port) as first, FaultyProxy(server.port) as second:
        proxies = (first, second)
        fleet = [
            start_machine(
                programs,
                RUNTIMES[number % 2],
                proxies[kind].port,
                tmp_path / f"{kind}-{number}",
                TOLD,
                url=url,
                gpu=gpus[kind],
                names=[f"k{kind}-{number}."],
            )
            for number in range(MACHINES // 2)
            for kind in (0, 1)
        ]
        release(fleet)
        for kind, name in enumerate(objects):
            ours = all_of(*(f"k{kind}-{n}." for n in range(MACHINES // 2)))
            assert kernels_of(store, name) == ours
            others = objects[1 - kind]
            assert not any(others in path for _, path in proxies[kind].requests)
    assert set(store.names()) == set(objects)


def test_lost_responses_to_puts_lose_no_kernel_and_end(
    programs: Programs,
    proxy: FaultyProxy,
    store: StoreProcess,
    url: str,
    tmp_path: Path,
) -> None:
    proxy.lose_responses()
    names = [f"m{number}-" for number in range(4)]
    release(
        [
            start_machine(
                programs,
                runtime,
                proxy.port,
                tmp_path / name,
                TOLD,
                url=url + PATIENT,
                names=[name],
            )
            for name, runtime in zip(names, cycle(RUNTIMES))
        ]
    )
    assert kernels_of(store) == all_of(*names)
    assert puts(proxy) == len(names)


def test_processes_of_a_machine_share_one_download(
    programs: Programs, proxy: FaultyProxy, url: str, tmp_path: Path
) -> None:
    code = """
def compile_(*names):
    plan = Plan(relu_plan("big", 256, 1 << 18), ["x"], ["y"], (4,))
    modules.append(start(runtime, plan, url))
    return device.counters()["compilations"]
"""

    def process(directory: str, runtime: str) -> Program:
        return start_machine(
            programs,
            runtime,
            proxy.port,
            tmp_path / directory,
            code + TOLD,
            url=url + PATIENT,
            names=[],
        )

    assert release([process("first", "cpp")]) == ["256"]
    before = proxy.count("GET")
    processes = [process("second", runtime) for runtime in RUNTIMES * 4]
    assert release(processes) == ["0"] * 8
    assert proxy.count("GET") == before + 1


def acknowledged(machines: Iterable[Program]) -> set[str]:
    """The kernels that the machines have reported as uploaded."""
    lines = chain.from_iterable(
        machine.stdout.splitlines(keepends=True) for machine in machines
    )
    return set(" ".join(line for line in lines if line.endswith("\n")).split())


def kill_machine(machine: Program) -> None:
    machine.kill()


def kill_helper(machine: Program) -> None:
    assert machine.poll() is None, machine.stderr
    for children in Path(f"/proc/{machine.pid}/task").glob("*/children"):
        for child in children.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)


def test_what_is_acknowledged_as_uploaded_outlives_machines(
    programs: Programs,
    server: MotoServer | VersityServer,
    store: StoreProcess,
    url: str,
    tmp_path: Path,
) -> None:
    def boot(number: int) -> Program:
        """Starts a machine that has no files of earlier machines."""
        name = f"m{number}"
        return start_machine(
            programs,
            RUNTIMES[number % 2],
            server.port,
            tmp_path / name,
            SAVING,
            url=url,
            name=name,
            file=tier_of(tmp_path / name, url) / OBJECT,
        )

    choice = random.Random(0)
    machines = list(map(boot, range(MACHINES)))
    running = list(machines)
    for round in range(1, ROUNDS + 1):
        deadline = time.monotonic() + DEADLINE
        while len(acknowledged(machines)) < round * KILLS * KERNELS:
            assert time.monotonic() < deadline, "too few kernels are uploaded"
            time.sleep(0.05)
        places = choice.sample(range(MACHINES), KILLS)
        said = {place: running[place].stdout for place in places}
        for kill, place in zip(cycle([kill_machine, kill_helper]), places):
            time.sleep(choice.uniform(0, 0.2))
            kill(running[place])
        deadline = time.monotonic() + LONGEST_LAST_WORD
        for place in places:
            machine = running[place]
            # Gives it time to report, wrongly, kernels that its killed helper did not upload.
            while machine.poll() is None and machine.stdout == said[place]:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.01)
            machine.close()
            running[place] = boot(len(machines))
            machines.append(running[place])
    for machine in running:
        machine.kill()

    uploaded = acknowledged(machines)
    assert uploaded <= kernels_of(store)
    for runtime in RUNTIMES:
        names = {kernel.partition(".")[0] + "." for kernel in uploaded}
        one_more = start_machine(
            programs,
            runtime,
            server.port,
            tmp_path / runtime,
            TOLD,
            url=url + PATIENT,
            names=sorted(names),
        )
        assert release([one_more]) == ["0"]
