"""core/util/file_lock.h against the real `filelock`, in separate processes.

tests/py/runtime/test_file_lock.py tests the same for the Python runtime's lock. `lock_peer` needs
the environment variables FILE_LOCK_TOOL and FILELOCK_3.
"""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.util.processes.line_process import LineProcess, lock_peer

KINDS = ["cpp-exclusive", "cpp-shared", "filelock-4", "filelock-3"]
ORDERED_PAIRS = [
    (first, second)
    for first, second in itertools.product(KINDS, KINDS)
    if "cpp" in first + second
]


class StartPeer(Protocol):
    def __call__(self, kind: str) -> LineProcess: ...


@pytest.fixture
def lock_path(tmp_path: Path) -> Path:
    return tmp_path / "engine.cache.lock"


@pytest.fixture
def start(lock_path: Path) -> Iterator[StartPeer]:
    with ExitStack() as stack:
        yield lambda kind: stack.enter_context(lock_peer(kind, lock_path))


def go_together(holder: str, other: str) -> bool:
    return holder == other == "cpp-shared"


@pytest.mark.parametrize(("held_by", "tried_by"), ORDERED_PAIRS)
def test_holder_excludes_the_other_until_it_releases(
    held_by: str, tried_by: str, start: StartPeer
) -> None:
    holder, other = start(held_by), start(tried_by)
    assert holder.ask("try") == "acquired"
    if go_together(held_by, tried_by):
        assert other.ask("try") == "acquired"
        assert other.ask("unlock") == "released"
    else:
        assert other.ask("try") == "busy"
        assert other.ask("wait 0.06") == "busy"
    assert holder.ask("unlock") == "released"
    assert other.ask("try") == "acquired"


@pytest.mark.parametrize("command", ["lock", "wait 60"])
@pytest.mark.parametrize(("held_by", "awaited_by"), ORDERED_PAIRS)
def test_release_hands_over_to_a_waiter(
    held_by: str, awaited_by: str, command: str, start: StartPeer
) -> None:
    holder, waiter = start(held_by), start(awaited_by)
    assert holder.ask("try") == "acquired"
    waiter.tell(command)
    assert holder.ask("unlock") == "released"
    assert waiter.hear() == "acquired"
    expected = "acquired" if go_together(held_by, awaited_by) else "busy"
    assert holder.ask("try") == expected


@pytest.mark.parametrize(("held_by", "tried_by"), ORDERED_PAIRS)
def test_killed_holder_frees_the_lock(
    held_by: str, tried_by: str, start: StartPeer
) -> None:
    holder, other = start(held_by), start(tried_by)
    assert holder.ask("try") == "acquired"
    holder.kill()
    assert other.ask("try") == "acquired"


@pytest.mark.parametrize("shared_holders", [1, 2])
@pytest.mark.parametrize("kind", ["filelock-4", "filelock-3"])
def test_filelock_waits_for_every_shared_holder(
    kind: str, shared_holders: int, start: StartPeer
) -> None:
    holders = [start("cpp-shared") for _ in range(shared_holders)]
    writer = start(kind)
    for holder in holders:
        assert holder.ask("try") == "acquired"
    for holder in holders:
        assert writer.ask("try") == "busy"
        assert holder.ask("unlock") == "released"
    assert writer.ask("try") == "acquired"


@pytest.mark.parametrize("kinds", [KINDS[:1] + KINDS[2:3], KINDS[:1] + KINDS[2:]])
def test_no_count_is_lost(kinds: list[str], start: StartPeer, tmp_path: Path) -> None:
    rounds = 50
    counter = tmp_path / "counter"
    counter.write_text("0")
    peers = [start(kind) for kind in kinds for _ in range(2)]
    for peer in peers:
        peer.tell(f"count {rounds} {counter}")
    assert [peer.hear() for peer in peers] == ["counted"] * len(peers)
    assert counter.read_text() == str(rounds * len(peers))


@pytest.mark.parametrize("kind", ["cpp-exclusive", "cpp-shared", "filelock-4"])
def test_the_lock_file_stays(kind: str, start: StartPeer, lock_path: Path) -> None:
    lock_path.write_text("a note")
    peer = start(kind)
    assert peer.ask("lock") == "acquired"
    assert peer.ask("unlock") == "released"
    if kind.startswith("cpp"):  # filelock before 4.2 truncates it
        assert lock_path.read_text() == "a note"
    assert lock_path.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_symbolic_link_is_refused(
    kind: str, start: StartPeer, lock_path: Path
) -> None:
    target = lock_path.with_name("target")
    lock_path.symlink_to(target)
    answer = start(kind).ask("try")
    assert answer.startswith("error") and str(lock_path) in answer
    assert not target.exists()
