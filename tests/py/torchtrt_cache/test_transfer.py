"""Transfers of kernels between files and a real object store, and the events that can disturb them.

Here a cache is a text with one kernel per line, so that merging needs no GPU.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from types import FrameType

import pytest

from torchtrt_cache import records, runtime_cache_file, transfer
from torchtrt_cache.file_lock import LockWaits, call_without_lock
from torchtrt_cache.kinds import RuntimeCacheKind
from torchtrt_cache.objects import ObjectContents, ObjectGeneration, ObjectStoreError
from torchtrt_cache.records import record_path_of
from torchtrt_cache.runtime_cache_file import Draft, RuntimeCacheFile
from torchtrt_cache.store_process import StoreProcess
from torchtrt_cache.transfer import (
    CannotMergeError,
    Merge,
    Outcome,
    Transfer,
    Transfers,
)

NAME = "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.0.bin"
KIND = RuntimeCacheKind("NVIDIA L4", 89, "1.6.1.120", "linux", 13000)
TIMEOUT = 120.0  # seconds per transfer
PATIENCE = 60.0  # seconds
STEP = 7  # calls and returns between the points at which a process is killed

Kernels = set[str]


def to_bytes(kernels: Kernels) -> memoryview:
    return memoryview(bytearray("".join(f"{k}\n" for k in sorted(kernels)), "ascii"))


def to_kernels(data: memoryview) -> Kernels:
    return set(str(data, "ascii").split())


def union(theirs: memoryview, ours: memoryview) -> memoryview:
    kernels = [to_kernels(data) for data in (theirs, ours)]
    for of_one, whose in zip(kernels, ("theirs", "ours"), strict=True):
        if "rejected" in of_one:
            raise CannotMergeError(f"{whose} are rejected")
    return to_bytes(kernels[0] | kernels[1])


class Store:
    """A store that counts its calls and can do something before or after one of them."""

    def __init__(self, store: StoreProcess) -> None:
        self.store = store
        self.calls: Counter[str] = Counter()
        self._once: dict[str, Callable[[], None]] = {}
        self.loses_responses = False

    @property
    def url(self) -> str:
        return self.store.url

    def once(self, when: str, what: Callable[[], None]) -> None:
        """Runs `what` once at a moment such as "before replace"."""
        self._once[when] = what

    def _happens(self, when: str) -> None:
        self._once.pop(when, lambda: None)()

    def generation(
        self, name: str, *, deadline: float = math.inf
    ) -> ObjectGeneration | None:
        self.calls["generation"] += 1
        return self.store.generation(name, deadline=deadline)

    def read(
        self,
        name: str,
        *,
        on_first_byte: Callable[[], None] = lambda: None,
        deadline: float = math.inf,
        draft: Draft | None = None,
    ) -> ObjectContents | None:
        self.calls["read"] += 1
        self._happens("before read")
        contents = self.store.read(
            name, on_first_byte=on_first_byte, deadline=deadline, draft=draft
        )
        self._happens("after read")
        return contents

    def replace(
        self,
        name: str,
        data: memoryview,
        expected: ObjectGeneration | None,
        *,
        deadline: float = math.inf,
    ) -> ObjectGeneration | None:
        self.calls["replace"] += 1
        self._happens("before replace")
        put = self.store.replace(name, data, expected, deadline=deadline)
        self._happens("after replace")
        return None if self.loses_responses else put

    def names(self, *, deadline: float = math.inf) -> list[str]:
        self.calls["names"] += 1
        return self.store.names(deadline=deadline)


class Machine:
    """A directory with a local file, and a store."""

    def __init__(self, url: str, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.store = Store(StoreProcess(url))
        self.first_bytes = 0

    def close(self) -> None:
        self.store.store.close()

    def transfers(self, timeout: float = TIMEOUT) -> Transfers:
        return Transfers(self.store, str(self.directory), time.monotonic() + timeout)

    def _announce(self) -> None:
        self.first_bytes += 1

    def pull(self, merge: Merge | None = union) -> Outcome:
        return self._checked(self.transfers().pull(NAME, merge, self._announce))

    def push(self, merge: Merge | None = union) -> Outcome:
        return self._checked(self.transfers().push(NAME, merge))

    def _checked(self, found: Transfer) -> Outcome:
        assert found.name == NAME
        if found.outcome is Outcome.TRANSFERRED:
            assert found.size > 0
        return found.outcome

    @property
    def path(self) -> Path:
        return self.directory / NAME

    @property
    def file(self) -> Kernels:
        return to_kernels(memoryview(self.path.read_bytes()))

    def save(self, *kernels: str) -> None:
        """Saves as a process that can merge does."""
        have = self.file if self.path.exists() else set()
        self.replace(have | set(kernels))

    def replace(self, kernels: Kernels) -> None:
        file = RuntimeCacheFile(str(self.path), LockWaits())
        local = file.read()
        assert file.replace(to_bytes(kernels), local.generation if local else None)

    @property
    def object(self) -> Kernels:
        contents = self.store.store.read(NAME)
        return to_kernels(contents.data) if contents else set()

    def put(self, *kernels: str) -> None:
        """Puts an object the way another machine does."""
        store = self.store.store
        data = to_bytes(self.object | set(kernels))
        assert store.replace(NAME, data, store.generation(NAME))

    def put_bytes(self, data: bytes, name: str = NAME) -> None:
        store = self.store.store
        assert store.replace(name, memoryview(data), store.generation(name))

    def delete(self) -> None:
        """Deletes the object."""
        self._call_library("obstore.delete(store, sys.argv[2])")

    def put_nothing(self) -> None:
        """Puts an empty object, which this project never writes."""
        self._call_library("obstore.put(store, sys.argv[2], b'')")

    def _call_library(self, call: str) -> None:
        """Calls the library in a separate process, since it does not work with forks."""
        code = (
            "import obstore, sys; from obstore.store import from_url; store = "
            "from_url(sys.argv[1], client_options={'allow_http': True}); "
            f"{call}"
        )
        command = [sys.executable, "-c", code, self.store.url, NAME]
        subprocess.run(command, check=True, timeout=PATIENCE)


@pytest.fixture
def machine(url: str, tmp_path: Path) -> Iterator[Machine]:
    with closing(Machine(url, tmp_path / "machine")) as machine:
        yield machine


@pytest.fixture
def other(url: str, tmp_path: Path) -> Iterator[Machine]:
    with closing(Machine(url, tmp_path / "other")) as machine:
        yield machine


@pytest.fixture(params=[union, None], ids=["merging", "alone"])
def merge(request: pytest.FixtureRequest) -> Merge | None:
    """For tests where nothing needs merging: the result must not depend on the ability to merge."""
    merge: Merge | None = request.param
    return merge


def test_pulls_into_an_empty_directory(machine: Machine, merge: Merge | None) -> None:
    machine.put("a", "b")
    assert machine.pull(merge) is Outcome.TRANSFERRED
    assert machine.file == {"a", "b"}
    assert machine.first_bytes >= 1
    assert machine.pull(merge) is Outcome.IN_STEP
    assert machine.push(merge) is Outcome.IN_STEP
    assert machine.store.calls["read"] == 1
    assert machine.store.calls["replace"] == 0


def test_pulls_nothing_where_there_is_nothing(
    machine: Machine, merge: Merge | None
) -> None:
    assert machine.pull(merge) is Outcome.MISSING
    assert machine.first_bytes >= 1
    assert not machine.path.exists()
    assert machine.push(merge) is Outcome.MISSING
    assert machine.object == set()


def test_pushes_a_first_object(machine: Machine, merge: Merge | None) -> None:
    machine.save("a")
    assert machine.push(merge) is Outcome.TRANSFERRED
    assert machine.object == {"a"}
    assert machine.push(merge) is Outcome.IN_STEP
    assert machine.pull(merge) is Outcome.IN_STEP
    assert machine.store.calls["replace"] == 1


def test_pushes_what_it_pulled_and_changed(
    machine: Machine, merge: Merge | None
) -> None:
    machine.put("a")
    machine.pull(merge)
    machine.save("b")
    assert machine.pull(merge) is Outcome.IN_STEP
    assert machine.push(merge) is Outcome.TRANSFERRED
    assert machine.object == {"a", "b"}
    assert machine.push(merge) is Outcome.IN_STEP


def test_a_file_that_was_not_changed_follows_the_object(
    machine: Machine, merge: Merge | None
) -> None:
    machine.save("a")
    machine.push(merge)
    machine.put("b")
    assert machine.pull(merge) is Outcome.TRANSFERRED
    assert machine.file == {"a", "b"}
    assert machine.push(merge) is Outcome.IN_STEP


def test_equal_contents_need_no_merge(machine: Machine, merge: Merge | None) -> None:
    machine.put("a")
    machine.save("a")
    assert machine.push(merge) is Outcome.IN_STEP
    assert machine.pull(merge) is Outcome.IN_STEP
    machine.put("b")
    machine.save("b")
    assert machine.pull(merge) is Outcome.IN_STEP
    assert machine.store.calls["replace"] == 0


def test_a_pull_merges_and_the_next_push_brings_the_rest(machine: Machine) -> None:
    machine.put("a")
    machine.save("b")
    assert machine.pull() is Outcome.TRANSFERRED
    assert machine.file == {"a", "b"}
    assert machine.object == {"a"}
    assert not machine.transfers().is_uploaded(NAME)
    assert machine.push() is Outcome.TRANSFERRED
    assert machine.object == {"a", "b"}
    assert machine.transfers().is_uploaded(NAME)


def test_a_push_merges_and_brings_the_rest_home(machine: Machine) -> None:
    machine.put("a")
    machine.save("b")
    assert machine.push() is Outcome.TRANSFERRED
    assert machine.file == machine.object == {"a", "b"}
    assert machine.pull() is Outcome.IN_STEP


def test_a_merge_that_adds_nothing_puts_nothing(machine: Machine) -> None:
    machine.put("a", "b")
    machine.save("a")
    assert machine.push() is Outcome.IN_STEP
    assert machine.file == {"a", "b"}
    assert machine.store.calls["replace"] == 0
    machine.save("a")
    machine.put("c")
    assert machine.pull() is Outcome.TRANSFERRED
    assert machine.transfers().is_uploaded(NAME)


def test_alone_nothing_that_differs_is_overwritten(machine: Machine) -> None:
    machine.put("a")
    machine.save("b")
    for _ in range(2):
        assert machine.pull(None) is Outcome.NOT_MERGED
        assert machine.push(None) is Outcome.NOT_MERGED
    assert machine.file == {"b"}
    assert machine.object == {"a"}
    assert machine.pull() is Outcome.TRANSFERRED
    assert machine.push(None) is Outcome.TRANSFERRED
    assert machine.file == machine.object == {"a", "b"}


def test_alone_a_changed_file_and_an_object_that_moved_on_stay(
    machine: Machine,
) -> None:
    machine.put("a")
    machine.pull(None)
    machine.save("b")
    machine.put("c")
    assert machine.pull(None) is Outcome.NOT_MERGED
    assert machine.push(None) is Outcome.NOT_MERGED
    assert machine.file == {"a", "b"}
    assert machine.object == {"a", "c"}


def test_alone_a_smaller_object_replaces_no_file(machine: Machine) -> None:
    machine.save("a", "b")
    machine.push(None)
    machine.delete()
    machine.put("c")
    assert machine.pull(None) is Outcome.NOT_MERGED
    assert machine.file == {"a", "b"}


@pytest.mark.parametrize("seen_by", [Machine.pull, Machine.push])
@pytest.mark.parametrize("is_missing", [False, True])
def test_alone_a_file_that_was_made_anew_never_replaces_the_object(
    seen_by: Callable[[Machine, Merge | None], Outcome],
    is_missing: bool,
    machine: Machine,
) -> None:
    machine.put("a", "b", "c")
    machine.pull(None)
    machine.path.unlink()
    if is_missing:
        machine.store.once("after read", lambda: machine.save("d"))
    else:
        machine.save("d")
    assert seen_by(machine, None) in (Outcome.NOT_MERGED, Outcome.MISSING)
    machine.save("d", "e", "f", "g", "h")
    for _ in range(2):
        assert machine.push(None) is Outcome.NOT_MERGED
        assert machine.pull(None) is Outcome.NOT_MERGED
    assert machine.object == {"a", "b", "c"}
    assert machine.pull() is Outcome.TRANSFERRED
    assert machine.push(None) is Outcome.TRANSFERRED
    assert machine.object == set("abcdefgh")


def test_alone_an_object_that_was_made_anew_is_not_in_step(machine: Machine) -> None:
    machine.save("a", "b")
    machine.push(None)
    machine.delete()
    machine.put("c")
    assert machine.pull(None) is Outcome.NOT_MERGED
    assert not machine.transfers().is_uploaded(NAME)
    assert machine.push(None) is Outcome.NOT_MERGED


def test_a_deleted_object_is_made_again(machine: Machine, merge: Merge | None) -> None:
    machine.save("a")
    machine.push(merge)
    machine.delete()
    assert machine.pull(merge) is Outcome.MISSING
    assert machine.push(merge) is Outcome.TRANSFERRED
    assert machine.object == machine.file == {"a"}


def test_an_empty_object_is_a_missing_one(
    machine: Machine, merge: Merge | None
) -> None:
    machine.put_nothing()
    assert machine.pull(merge) is Outcome.MISSING
    assert not machine.path.exists()
    machine.save("a")
    assert machine.push(merge) is Outcome.TRANSFERRED
    assert machine.object == {"a"}
    assert machine.push(merge) is Outcome.IN_STEP


def test_alone_others_that_fill_an_empty_object_lose_nothing(machine: Machine) -> None:
    machine.put_nothing()
    machine.save("a")
    machine.store.once("before replace", lambda: machine.put("b"))
    assert machine.push(None) is Outcome.NOT_MERGED
    assert machine.object == {"b"}


def test_an_object_that_is_deleted_before_it_is_read_is_missing(
    machine: Machine, merge: Merge | None
) -> None:
    machine.put("a")
    machine.store.once("before read", machine.delete)
    assert machine.pull(merge) is Outcome.MISSING
    assert machine.first_bytes >= 1


def test_others_that_put_meanwhile_lose_nothing(machine: Machine) -> None:
    machine.save("a")
    machine.store.once("before replace", lambda: machine.put("b"))
    assert machine.push() is Outcome.TRANSFERRED
    assert machine.file == machine.object == {"a", "b"}
    machine.save("c")
    machine.store.once("before replace", lambda: machine.put("d"))
    assert machine.push() is Outcome.TRANSFERRED
    assert machine.file == machine.object == {"a", "b", "c", "d"}


def test_others_that_put_all_of_ours_meanwhile_spare_us_the_put(
    machine: Machine,
) -> None:
    machine.save("a")
    machine.store.once("before replace", lambda: machine.put("a", "b"))
    assert machine.push() is Outcome.IN_STEP
    assert machine.file == machine.object == {"a", "b"}
    assert machine.store.calls["replace"] == 1


def test_alone_others_that_put_meanwhile_lose_nothing(machine: Machine) -> None:
    machine.put("a")
    machine.pull(None)
    machine.save("b")
    machine.store.once("before replace", lambda: machine.put("c"))
    assert machine.push(None) is Outcome.NOT_MERGED
    assert machine.object == {"a", "c"}
    assert machine.file == {"a", "b"}


def test_an_object_that_is_deleted_before_the_put_is_made_again(
    machine: Machine,
) -> None:
    machine.put("a")
    machine.save("b")
    machine.store.once("before replace", machine.delete)
    assert machine.push() is Outcome.TRANSFERRED
    assert machine.object == {"b"}  # whoever deletes an object wants it to be lost
    assert "b" in machine.file


def test_a_lost_response_is_no_conflict(machine: Machine, merge: Merge | None) -> None:
    machine.save("a")
    machine.store.loses_responses = True
    assert machine.push(merge) in (Outcome.TRANSFERRED, Outcome.IN_STEP)
    machine.save("b")
    assert machine.push(merge) in (Outcome.TRANSFERRED, Outcome.IN_STEP)
    assert machine.object == {"a", "b"}
    assert machine.store.calls["replace"] == 2
    assert machine.transfers().is_uploaded(NAME)


def test_a_lost_response_and_a_put_by_others_lose_nothing(machine: Machine) -> None:
    machine.save("a")
    machine.store.loses_responses = True
    machine.store.once("after replace", lambda: machine.put("b"))
    assert machine.push() is Outcome.IN_STEP
    assert machine.file == machine.object == {"a", "b"}


def test_endless_conflicts_end_at_the_deadline(machine: Machine) -> None:
    machine.save("a")
    number = iter(range(10**6))

    def put_and_repeat() -> None:
        machine.put(f"b{next(number)}")
        machine.store.once("before replace", put_and_repeat)

    put_and_repeat()
    start = time.monotonic()
    with pytest.raises(ObjectStoreError, match="no answer within"):
        machine.transfers(timeout=2).push(NAME, union)
    assert time.monotonic() - start < PATIENCE
    assert machine.file == {"a"}
    assert "a" not in machine.object


@pytest.mark.parametrize("call", ["read", "replace"])
def test_a_file_that_is_saved_during_a_push_is_pushed_next(
    call: str, machine: Machine
) -> None:
    machine.put("a")
    machine.save("b")
    machine.store.once(f"before {call}", lambda: machine.save("c"))
    assert machine.push() is Outcome.TRANSFERRED
    assert machine.object == {"a", "b"}
    assert machine.file == {"b", "c"}
    assert not machine.transfers().is_uploaded(NAME)
    assert machine.push() is Outcome.TRANSFERRED
    assert machine.file == machine.object == {"a", "b", "c"}


def test_a_file_that_is_saved_during_a_merge_is_merged_again(machine: Machine) -> None:
    machine.put("a")
    machine.save("b")
    names = iter("cd")

    def merge(theirs: memoryview, ours: memoryview) -> memoryview:
        merged = union(theirs, ours)
        for name in names:
            machine.save(name)
            break
        return merged

    assert machine.pull(merge) is Outcome.TRANSFERRED
    assert machine.file == {"a", "b", "c", "d"}


def test_alone_a_file_that_is_first_saved_during_a_pull_stays(machine: Machine) -> None:
    machine.put("a")
    machine.store.once("after read", lambda: machine.save("b"))
    assert machine.pull(None) is Outcome.NOT_MERGED
    assert machine.file == {"b"}
    assert names_beside(machine) <= {"", ".lock", ".remote.lock"}


def test_a_file_that_is_first_saved_during_a_pull_is_merged(machine: Machine) -> None:
    machine.put("a")
    machine.store.once("after read", lambda: machine.save("b"))
    assert machine.pull() is Outcome.TRANSFERRED
    assert machine.file == {"a", "b"}
    assert names_beside(machine) == BESIDE


def test_a_file_that_is_removed_is_pulled_again(
    machine: Machine, merge: Merge | None
) -> None:
    machine.put("a")
    machine.pull(merge)
    machine.path.unlink()
    assert machine.pull(merge) is Outcome.TRANSFERRED
    machine.path.write_bytes(b"")
    assert machine.pull(merge) is Outcome.TRANSFERRED
    assert machine.file == {"a"}


@pytest.mark.parametrize("whose", ["theirs", "ours"])
def test_what_is_rejected_replaces_nothing(whose: str, machine: Machine) -> None:
    machine.put("a")
    machine.save("b")
    (machine.put if whose == "theirs" else machine.save)("rejected")
    file, object = machine.file, machine.object
    for _ in range(2):
        with pytest.raises(CannotMergeError):
            machine.pull()
        with pytest.raises(CannotMergeError):
            machine.push()
        assert machine.push(None) is Outcome.NOT_MERGED
        assert machine.pull(None) is Outcome.NOT_MERGED
    assert machine.file == file
    assert machine.object == object


def test_what_was_rejected_is_fetched_again_when_either_changes(
    machine: Machine,
) -> None:
    machine.put("a", "rejected")
    machine.save("b")
    for has_changed in (True, False, True, False):
        before = machine.store.calls["read"]
        with pytest.raises(CannotMergeError):
            machine.pull()
        assert machine.store.calls["read"] == before + has_changed
        if not has_changed:
            machine.save("c")
    machine.put_bytes(bytes(to_bytes({"a", "d"})))
    assert machine.pull() is Outcome.TRANSFERRED
    assert machine.file == {"a", "b", "c", "d"}


def test_a_push_does_not_fetch_what_a_pull_could_not_merge(machine: Machine) -> None:
    machine.put("a", "rejected")
    machine.save("b")
    with pytest.raises(CannotMergeError):
        machine.pull()
    for has_changed in (False, True):
        before = machine.store.calls["read"]
        with pytest.raises(CannotMergeError):
            machine.push()
        assert machine.store.calls["read"] == before + has_changed
        machine.save("c")
    assert machine.object == {"a", "rejected"}


@pytest.mark.parametrize("garbage", ["", "[]", "{", "\0" * 100])
def test_a_record_that_is_lost_costs_only_time(garbage: str, machine: Machine) -> None:
    machine.put("a")
    machine.pull()
    record = Path(record_path_of(str(machine.path)))
    record.write_text(garbage)
    assert machine.pull(None) is Outcome.IN_STEP
    record.write_text(garbage)
    assert machine.push(None) is Outcome.IN_STEP
    machine.save("b")
    record.write_text(garbage)
    assert machine.push() is Outcome.TRANSFERRED
    assert machine.object == {"a", "b"}


def test_the_record_of_another_url_does_not_count(
    machine: Machine, tmp_path: Path
) -> None:
    machine.save("a")
    machine.push()
    with closing(Machine(f"{machine.store.url}other/", machine.directory)) as other:
        assert other.push(None) is Outcome.TRANSFERRED
        assert other.object == {"a"}


def older(driver: str) -> str:
    return NAME.replace("13.0", driver)


def test_a_kind_without_an_object_starts_with_the_newest_older_driver(
    machine: Machine,
) -> None:
    kind = RuntimeCacheKind("NVIDIA L4", 89, "1.6.1.120", "linux", 13020)
    for name in (older("12.9"), older("13.0"), older("13.1"), older("13.3")):
        machine.put_bytes(name.encode(), name)
    found = machine.transfers().pull_kind(kind, union, lambda: None)
    assert found == (older("13.1"), Outcome.TRANSFERRED, len(older("13.1")))
    assert (machine.directory / older("13.1")).read_text() == older("13.1")
    assert not (machine.directory / kind.file_name()).exists()
    again = machine.transfers().pull_kind(kind, union, lambda: None)
    assert again.outcome is Outcome.IN_STEP
    machine.put_bytes(b"own\n", kind.file_name())
    own = machine.transfers().pull_kind(kind, union, lambda: None)
    assert own == (kind.file_name(), Outcome.TRANSFERRED, 4)


def test_a_kind_with_a_file_needs_no_older_driver(machine: Machine) -> None:
    machine.put_bytes(b"older\n", older("12.9"))
    machine.save("a")
    found = machine.transfers().pull_kind(KIND, union, lambda: None)
    assert found == (NAME, Outcome.MISSING, 0)
    assert machine.store.calls["names"] == 0


def test_pulls_of_one_machine_share_a_download(url: str, tmp_path: Path) -> None:
    machines = [Machine(url, tmp_path / "machine") for _ in range(4)]
    first, *others = machines
    first.put("a")
    is_reading, may_end = threading.Event(), threading.Event()

    def wait() -> None:
        is_reading.set()
        assert may_end.wait(PATIENCE)

    first.store.once("after read", wait)
    try:
        with ThreadPoolExecutor() as threads:
            first_pull = threads.submit(first.pull)
            assert is_reading.wait(PATIENCE)
            pulls = [threads.submit(machine.pull) for machine in others]
            end = time.monotonic() + PATIENCE
            while not all(machine.first_bytes for machine in others):
                assert time.monotonic() < end
                time.sleep(0.01)
            assert not any(pull.done() for pull in pulls)
            may_end.set()
            assert first_pull.result() is Outcome.TRANSFERRED
            assert {pull.result() for pull in pulls} == {Outcome.IN_STEP}
        assert sum(machine.store.calls["read"] for machine in machines) == 1
    finally:
        may_end.set()
        for machine in machines:
            machine.close()


class Pause:
    """Pauses a transfer of a machine during the block, at a moment such as "before replace"."""

    def __init__(self, machine: Machine, when: str) -> None:
        self._is_there, self._may_end = threading.Event(), threading.Event()
        machine.store.once(when, self._wait)

    def _wait(self) -> None:
        self._is_there.set()
        assert self._may_end.wait(PATIENCE)

    def __enter__(self) -> None:
        assert self._is_there.wait(PATIENCE)

    def __exit__(self, *_: object) -> None:
        self._may_end.set()


@pytest.fixture
def second(machine: Machine) -> Iterator[Machine]:
    """Another process of the machine."""
    with closing(Machine(machine.store.url, machine.directory)) as second:
        yield second


def test_a_pull_of_nothing_does_not_wait_for_an_upload(
    machine: Machine, second: Machine, merge: Merge | None
) -> None:
    machine.save("a")
    pause = Pause(machine, "before replace")
    with ThreadPoolExecutor() as threads:
        push = threads.submit(machine.push, merge)
        with pause:
            assert second.pull(merge) is Outcome.MISSING
            assert second.first_bytes == 1
        assert push.result() is Outcome.TRANSFERRED
        machine.save("b")
        pause = Pause(machine, "before replace")
        push = threads.submit(machine.push, merge)
        with pause:
            assert second.pull(merge) is Outcome.IN_STEP
            assert second.first_bytes == 2
        assert push.result() is Outcome.TRANSFERRED


def test_the_first_byte_of_a_push_counts_for_a_pull_that_waits(
    machine: Machine, second: Machine, merge: Merge | None
) -> None:
    machine.save("a")
    pause = Pause(machine, "before replace")
    with ThreadPoolExecutor() as threads:
        push = threads.submit(machine.push, merge)
        with pause:
            machine.put("b")  # gives the pull something to fetch
            pull = threads.submit(second.pull, merge)
            end = time.monotonic() + PATIENCE
            while not second.first_bytes:
                assert time.monotonic() < end
                time.sleep(0.01)
            assert not pull.done()
        push.result()
        pull.result()


@pytest.mark.parametrize("verb", [Machine.pull, Machine.push])
def test_nobody_who_can_not_use_the_cache_blocks_a_transfer(
    verb: Callable[[Machine], Outcome], machine: Machine
) -> None:
    machine.put("a")
    machine.save("b")
    machine.path.chmod(0o644)
    verb(machine)
    for suffix in (".remote.lock", ".remote"):
        status = Path(f"{machine.path}{suffix}").stat()
        assert stat.S_IMODE(status.st_mode) == 0o640


@pytest.mark.parametrize("verb", [Machine.pull, Machine.push])
def test_nothing_waits_for_the_end_of_a_transfer(
    verb: Callable[[Machine], Outcome], machine: Machine
) -> None:
    machine.put("a")
    machine.save("b")
    called: list[str] = []

    def save_at_end_of_a_cache() -> None:
        call_without_lock(lambda: called.append("save"))
        assert called == ["save"]

    machine.store.once("after read", save_at_end_of_a_cache)
    assert verb(machine) is Outcome.TRANSFERRED
    assert called == ["save"]


@pytest.mark.parametrize("are_equal", [True, False])
def test_machines_that_push_at_once_lose_nothing(
    are_equal: bool, url: str, tmp_path: Path
) -> None:
    machines = [Machine(url, tmp_path / str(i)) for i in range(6)]
    kernels = ["a"] * 6 if are_equal else list("abcdef")
    for machine, kernel in zip(machines, kernels, strict=True):
        machine.save(kernel)
    try:
        with ThreadPoolExecutor(len(machines)) as threads:
            outcomes = list(threads.map(Machine.push, machines))
        assert Outcome.TRANSFERRED in outcomes
        assert machines[0].object == set(kernels)
        for machine, kernel in zip(machines, kernels, strict=True):
            assert kernel in machine.file
            machine.pull()
            assert machine.file == set(kernels)
        if are_equal:
            assert all(machine.store.calls["replace"] <= 1 for machine in machines)
    finally:
        for machine in machines:
            machine.close()


def test_a_disk_without_room_for_the_object_is_an_error(machine: Machine) -> None:
    machine.put_bytes(bytes(1 << 20))
    machine.store.store.close()  # the next helper process inherits the limit
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(
            ObjectStoreError, match="can't write a body: File too large"
        ):
            machine.pull()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names_beside(machine) == {".remote.lock"}
    machine.store.store.close()
    assert machine.pull() is Outcome.TRANSFERRED


def test_a_file_that_can_not_be_written_is_an_error_and_stays(machine: Machine) -> None:
    machine.save("b")
    machine.put("a")
    machine.path.chmod(0o666)  # anybody could have written it
    with pytest.raises(RuntimeError, match="can't be trusted"):
        machine.pull()
    with pytest.raises(RuntimeError, match="can't be trusted"):
        machine.push()
    assert machine.file == {"b"}
    assert machine.object == {"a"}


BESIDE = {"", ".lock", ".remote", ".remote.lock"}


def names_beside(machine: Machine) -> set[str]:
    """The names in the machine's directory, without their common prefix, the file's name."""
    return {path.name.removeprefix(NAME) for path in machine.directory.iterdir()}


MODULES = {str(m.__file__) for m in (transfer, records, runtime_cache_file)}


def kill_after(calls: int) -> None:
    """Kills this process at that call of a function in MODULES, or return from one."""
    left = calls

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        if frame.f_code.co_filename in MODULES and not event.startswith("c_"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def is_killed(calls: int, work: Callable[[], object]) -> bool:
    """Returns True if a child that does the work is killed before it is done."""
    child = os.fork()
    if child == 0:
        try:
            kill_after(calls)
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


@pytest.mark.parametrize("verb", ["pull", "push"])
def test_a_process_that_is_killed_loses_nothing(
    verb: str, url: str, tmp_path: Path
) -> None:
    kernels: Kernels = set()
    rounds = killed = 0
    calls = 1
    while rounds == killed:
        with closing(Machine(url, tmp_path / "machine")) as machine:
            machine.put(f"object{rounds}")
            machine.save(f"file{rounds}")
            kernels |= {f"object{rounds}", f"file{rounds}"}
        transfer_it = {"pull": Machine.pull, "push": Machine.push}[verb]

        def work(transfer_it: Callable[[Machine], Outcome] = transfer_it) -> None:
            transfer_it(Machine(url, tmp_path / "machine"))

        killed += is_killed(calls, work)
        rounds += 1
        calls += STEP
        with closing(Machine(url, tmp_path / "machine")) as machine:
            assert machine.object | machine.file == kernels
            machine.push()
            assert machine.object == machine.file == kernels
            assert machine.pull() is Outcome.IN_STEP
            assert names_beside(machine) == BESIDE
    assert killed > 20


def test_a_machine_that_is_killed_in_its_first_pull_pulls_again(
    url: str, tmp_path: Path
) -> None:
    rounds = killed = 0
    calls = 1
    while rounds == killed:
        with closing(Machine(url, tmp_path / f"machine{rounds}")) as machine:
            machine.put(f"object{rounds}")
        killed += is_killed(calls, partial(Machine.pull, machine))
        rounds += 1
        calls += STEP
        with closing(machine):
            assert not machine.path.exists() or machine.file == machine.object
            machine.pull()
            assert machine.file == machine.object
            assert names_beside(machine) == BESIDE
    assert killed > 20
