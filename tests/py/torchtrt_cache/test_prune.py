"""torchtrt-cache prune."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.py.torchtrt_cache.caches import DAY, kind_file, put, set_age, snapshot
from tests.util.processes.line_process import LineProcess, lock_peer
from torchtrt_cache import prune as prune_module
from torchtrt_cache.__main__ import main

A, B, C, D = (kind_file(driver) for driver in ("12.8", "12.9", "13.0", "13.1"))
OLD_DEFAULT = "runtime_cache-1.5.0.7.bin"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Four caches of 1000 bytes. D is in use."""
    directory = tmp_path / "caches"
    directory.mkdir()
    for name, days in ((A, 100), (B, 40), (C, 30), (D, 0.5)):
        put(directory / name, days)
    return directory


def prune(directory: Path, *arguments: str) -> int:
    return main(["prune", str(directory), *arguments])


def caches_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.suffix == ".bin"}


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        (["--older-than", "99d"], {B, C, D}),
        (["--older-than", "5w"], {C, D}),
        (["--older-than", "30.01d"], {C, D}),
        (["--older-than", "101d"], {A, B, C, D}),
        (["--older-than", "0d"], {D}),
        (["--keep-newest", "4"], {A, B, C, D}),
        (["--keep-newest", "2"], {C, D}),
        (["--keep-newest", "0"], {D}),
        (["--max-size", "4000"], {A, B, C, D}),
        (["--max-size", "3999"], {B, C, D}),
        (["--max-size", "1.9KiB"], {D}),
        (["--max-size", "0"], {D}),
        (["--max-size", "9999999TiB"], {A, B, C, D}),
    ],
)
def test_removes_whole_kinds_least_recently_used_first(
    rule: list[str], left: set[str], directory: Path
) -> None:
    before = snapshot(directory)
    assert prune(directory, *rule) == 0
    removed = {A, B, C, D} - left
    assert snapshot(directory) == {
        name: state for name, state in before.items() if name not in removed
    }


def test_tells_what_it_does(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(directory, "--keep-newest", "0") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"removed {A[:-4]}: 1,000 bytes, last used 100 days ago",
        f"removed {B[:-4]}: 1,000 bytes, last used 40 days ago",
        f"removed {C[:-4]}: 1,000 bytes, last used 30 days ago",
        f"kept {D[:-4]}: 1,000 bytes, in use: last used 12 hours ago",
        "removed 3 of 4 kinds: 3,000 bytes; 1,000 bytes are left",
    ]


def test_a_dry_run_says_the_same_and_changes_nothing(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"{directory / A}.lock").unlink()
    before = snapshot(directory)
    assert prune(directory, "--keep-newest", "0", "--dry-run") == 0
    assert snapshot(directory) == before
    said = capsys.readouterr().out
    assert prune(directory, "--keep-newest", "0") == 0
    assert said == capsys.readouterr().out.replace("removed ", "would remove ")


def test_the_last_use_is_the_later_time_of_cache_and_lock_file(
    directory: Path,
) -> None:
    set_age(directory / f"{A}.lock", 10)
    set_age(directory / B, 5)
    assert prune(directory, "--keep-newest", "3") == 0
    assert caches_in(directory) == {A, B, D}


def test_the_old_default_cache_is_a_kind(directory: Path) -> None:
    put(directory / OLD_DEFAULT, 200)
    assert prune(directory, "--older-than", "150d") == 0
    assert caches_in(directory) == {A, B, C, D}


def test_leftovers_of_killed_saves_go_with_the_kind_and_count(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (A, D):
        for suffix in ("tmp", "merge"):
            left = directory / f"{name}.12-0123456789abcdef.{suffix}"
            left.write_bytes(bytes(300))
    assert prune(directory, "--max-size", "4999") == 0
    assert f"removed {A[:-4]}: 1,600 bytes" in capsys.readouterr().out
    assert {path.name for path in directory.glob(f"{A}*")} == {f"{A}.lock"}
    assert len(list(directory.glob(f"{D}*"))) == 4


def test_the_record_of_transfers_goes_with_the_kind(directory: Path) -> None:
    for name in (A, D):
        Path(f"{directory / name}.remote").write_text("{}")
    assert prune(directory, "--keep-newest", "0") == 0
    assert not Path(f"{directory / A}.remote").exists()
    assert Path(f"{directory / D}.remote").exists()


def test_leftovers_of_a_kind_without_a_cache_go_first(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, newer = (kind_file(driver) for driver in ("11.0", "11.1"))
    for name, days in ((first, 35.0), (newer, 0.5)):
        for suffix in ("tmp", "merge"):
            path = directory / f"{name}.12-0123456789abcdef.{suffix}"
            put(path, days, size=300, has_lock=False)
    (directory / f"{first}.lock").touch()
    set_age(directory / f"{first}.lock", 34)
    assert prune(directory, "--max-size", "5199") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"removed {first[:-4]}: 600 bytes, last used 34 days ago",
        "removed 1 of 6 kinds: 600 bytes; 4,600 bytes are left",
    ]
    assert {path.name for path in directory.glob(f"{first}*")} == {f"{first}.lock"}
    assert caches_in(directory) == {A, B, C, D}
    assert prune(directory, "--keep-newest", "4") == 0
    reason = "in use: last used 12 hours ago"
    assert f"kept {newer[:-4]}: 600 bytes, {reason}" in capsys.readouterr().out
    assert len(list(directory.glob(f"{newer}*"))) == 2


def test_a_cache_without_a_lock_file_gets_one_and_goes(directory: Path) -> None:
    lock = directory / f"{A}.lock"
    lock.unlink()
    assert prune(directory, "--keep-newest", "3") == 0
    assert caches_in(directory) == {B, C, D}
    assert lock.stat().st_mode & 0o007 == 0


def test_a_kind_that_stays_gets_no_lock_file(directory: Path) -> None:
    lock = directory / f"{A}.lock"
    lock.unlink()
    offer = directory / f"{A}.12-0123456789abcdef.merge"
    offer.touch()
    with holder("exclusive", offer):
        assert prune(directory, "--keep-newest", "3") == 0
    assert caches_in(directory) == {A, B, C, D}
    assert not lock.exists()
    assert prune(directory, "--keep-newest", "3") == 0
    assert caches_in(directory) == {B, C, D}


def holder(mode: str, path: Path) -> LineProcess:
    code = f"""
import fcntl, sys
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_{"EX" if mode == "exclusive" else "SH"})
print("held", flush=True)
sys.stdin.read()
"""
    process = LineProcess(sys.executable, "-c", code, path)
    assert process.hear() == "held"
    return process


@pytest.mark.parametrize("kind", ["cpp-exclusive", "cpp-shared", "filelock-4"])
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_what_a_process_has_locked_is_kept(
    kind: str, dry_run: list[str], directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock_peer(kind, directory / f"{A}.lock") as peer:
        assert peer.ask("lock") == "acquired"
        assert prune(directory, "--older-than", "35d", *dry_run) == 0
        reason = "in use: a process has its lock"
        assert f"kept {A[:-4]}: 1,000 bytes, {reason}" in capsys.readouterr().out
        assert caches_in(directory) == ({A, B, C, D} if dry_run else {A, C, D})
    assert prune(directory, "--older-than", "35d") == 0
    assert caches_in(directory) == {C, D}


@pytest.mark.parametrize("suffix", ["tmp", "merge"])
def test_what_a_process_is_saving_is_kept(
    suffix: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    temporary = directory / f"{A}.12-0123456789abcdef.{suffix}"
    temporary.touch()
    with holder("exclusive", temporary):
        assert prune(directory, "--keep-newest", "3") == 0
    assert f"in use: a save is using '{temporary}'" in capsys.readouterr().out
    assert caches_in(directory) == {A, B, C, D}


def test_max_size_takes_the_next_for_one_in_use(directory: Path) -> None:
    with holder("shared", directory / f"{A}.lock"):
        assert prune(directory, "--max-size", "3000") == 0
    assert caches_in(directory) == {A, C, D}


def test_keep_newest_keeps_the_newest_beside_one_in_use(directory: Path) -> None:
    with holder("shared", directory / f"{A}.lock"):
        assert prune(directory, "--keep-newest", "3") == 0
    assert caches_in(directory) == {A, B, C, D}


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


REPLACEMENTS = [replace_by_link, replace_by_directory, replace_by_fifo]


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_what_is_no_regular_file_is_not_touched(
    replace: Callable[[Path], None], directory: Path
) -> None:
    temporary = directory / f"{B}.12-0123456789abcdef.tmp"
    temporary.touch()
    for path in (directory / A, temporary):
        replace(path)
    before = snapshot(directory)
    assert prune(directory, "--max-size", "0") == 0
    assert snapshot(directory) == {
        name: state for name, state in before.items() if name not in (B, C)
    }


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_a_cache_whose_lock_can_not_be_taken_stays_and_is_an_error(
    replace: Callable[[Path], None],
    directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lock = directory / f"{A}.lock"
    replace(lock)
    before = snapshot(directory)
    assert prune(directory, "--older-than", "35d") == 1
    assert snapshot(directory) == {n: s for n, s in before.items() if n != B}
    said = capsys.readouterr()
    assert re.match(f"Can't remove '{directory / A}': Can't .*'{lock}'", said.err)
    assert "removed 1 of 4 kinds: 1,000 bytes; 3,000 bytes are left" in said.out


def test_what_may_not_be_removed_is_an_error(directory: Path) -> None:
    code = """
import ctypes, sys
from torchtrt_cache.__main__ import main
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0
sys.exit(main(["prune", *sys.argv[1:]]))
"""  # drops the capabilities of root
    directory.chmod(0o555)
    try:
        result = subprocess.run(
            [sys.executable, "-c", code, directory, "--older-than", "50d"],
            capture_output=True,
            text=True,
        )
    finally:
        directory.chmod(0o755)
    assert result.returncode == 1
    path = directory / A
    assert result.stderr == f"Can't remove '{path}': Permission denied: '{path}'\n"
    assert "removed 0 of 4 kinds" in result.stdout
    assert caches_in(directory) == {A, B, C, D}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (["--older-than", "90"], "'90', expected a number with d or w, such as 90d"),
        (["--older-than=-1d"], "'-1d', expected a number with d or w"),
        (["--older-than", "1m"], "'1m', expected a number with d or w"),
        (["--older-than", "\u0661d"], "'\u0661d', expected a number with d or w"),
        (["--keep-newest", "1.5"], "'1.5', expected a whole number, such as 3"),
        (["--keep-newest", "-1"], "'-1', expected a whole number, such as 3"),
        (
            ["--max-size", "2gb"],
            "'2gb', expected a number of bytes, or one with KiB, MiB, GiB or TiB, such",
        ),
        (["--max-size", "\x1b[2J"], "'\\x1b[2J', expected a number of bytes"),
        ([], "one of the arguments --older-than --keep-newest --max-size is required"),
        (["--older-than", "1d", "--max-size", "1"], "not allowed with argument"),
    ],
)
def test_wrong_arguments_are_named(
    rule: list[str],
    expected: str,
    directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        prune(directory, *rule)
    assert exit_.value.code == 2
    assert expected in capsys.readouterr().err
    assert caches_in(directory) == {A, B, C, D}


@pytest.mark.parametrize(
    ("place", "reason"),
    [("missing", "No such file or directory"), (A, "Not a directory")],
)
def test_what_is_no_directory_is_an_error(
    place: str, reason: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory / place
    assert prune(path, "--max-size", "0") == 1
    assert capsys.readouterr().err == f"Can't prune '{path}': {reason}: '{path}'\n"


def test_runs_as_a_program(directory: Path) -> None:
    command = [sys.executable, "-m", "torchtrt_cache", "prune", str(directory)]
    result = subprocess.run([*command, "--max-size", "1"], capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")
    assert caches_in(directory) == {D}


@pytest.mark.parametrize("command", [["info"], ["prune", "--older-than", "1d"]])
def test_ends_quietly_if_nobody_reads_the_output(
    command: list[str], directory: Path
) -> None:
    for i in range(500):  # more than fit into a pipe's buffer
        put(directory / kind_file("13.0", f"gpu-{i}"), 3)
    with subprocess.Popen(
        [sys.executable, "-m", "torchtrt_cache", *command, str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize(
    "command", [["info"], ["info", "--json"], ["prune", "--older-than", "1d"]]
)
def test_works_without_an_output(command: list[str], directory: Path) -> None:
    words = [sys.executable, "-m", "torchtrt_cache", *command, str(directory)]
    result = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *words], stderr=subprocess.PIPE
    )
    assert (result.returncode, result.stderr) == (0, b"")


# Loads and saves a cache as engines do, until the file named by its second argument exists. All the
# bytes of a save are equal.
USER = """
import sys, time
from pathlib import Path
from torchtrt_cache.runtime_cache_file import RuntimeCacheFile
from torchtrt_cache.file_lock import LockWaits, file_lock
path = Path(sys.argv[1])
lock = f"{path}.lock"
waits = LockWaits()
store = RuntimeCacheFile(str(path), waits)
saves = 0
while not Path(sys.argv[2]).exists():
    contents = store.read()
    data = bytes(contents.data) if contents else b""
    assert len(set(data)) <= 1, "torn"
    new = bytes([saves % 250 + 1]) * (len(data) % 5000 + 1)
    replaced = store.replace(memoryview(new), contents.generation if contents else None)
    if replaced is None:
        continue
    saves += 1
    if saves == 1:
        print("ready", flush=True)
    with file_lock(lock, waits, shared=True):
        was_there = path.exists()
        time.sleep(0.0005)
        assert path.exists() == was_there, "removed under the lock"
print("done", flush=True)
"""


def test_processes_that_load_and_save_meanwhile_lose_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = directory / "stop"
    paths = [directory / A, directory / A, directory / B]
    users = [LineProcess(sys.executable, "-c", USER, path, stop) for path in paths]
    try:
        assert [user.hear() for user in users] == ["ready"] * len(users)
        for _ in range(100):
            put(directory / C, 3)
            assert prune(directory, "--keep-newest", "0") == 0
            assert {A, B} <= caches_in(directory)
            assert C not in caches_in(directory)
        # From here on, only their locks protect them.
        monkeypatch.setattr(prune_module, "_IN_USE_FOR", -DAY * 10**9)
        removals = 0
        while removals < 20:
            before = caches_in(directory)
            assert prune(directory, "--keep-newest", "0") == 0
            removals += len(before) > len(caches_in(directory))
        stop.touch()
        assert [user.hear() for user in users] == ["done"] * len(users)
    finally:
        for user in users:
            user.kill()
