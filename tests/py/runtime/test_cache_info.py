"""python -m torch_tensorrt.runtime.cache_info, about locks that other processes hold."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.util.processes.line_process import LineProcess, file_lock_tool
from torch_tensorrt.runtime import cache_info
from torchtrt_cache.lock_holders import find_lock_holders

SOMEBODY_ELSE = 54321
# As in Bazel's sandbox, where nobody can tell what processes outside hold.
IS_IN_CONTAINER = Path("/proc/self/ns/pid").readlink() != Path("pid:[4026531836]")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(b"kernels" * 1000)
    return path


@pytest.fixture
def lock_path(path: Path) -> Path:
    lock_path = Path(f"{path}.lock")
    lock_path.touch()
    return lock_path


def python(code: str, *arguments: str | Path) -> LineProcess:
    return LineProcess(sys.executable, "-c", code, *arguments)


@contextmanager
def filelock_holder(lock_path: Path) -> Iterator[LineProcess]:
    code = """
import filelock, sys
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("acquired", flush=True)
sys.stdin.read()
"""
    with python(code, lock_path) as holder:
        assert holder.hear() == "acquired"
        yield holder


@contextmanager
def cpp_holder(mode: str, lock_path: Path) -> Iterator[LineProcess]:
    with file_lock_tool(mode, lock_path) as holder:
        assert holder.ask("lock") == "acquired"
        yield holder


def cpp_shared(lock_path: Path) -> AbstractContextManager[LineProcess]:
    return cpp_holder("shared", lock_path)


def cpp_exclusive(lock_path: Path) -> AbstractContextManager[LineProcess]:
    return cpp_holder("exclusive", lock_path)


def info_of(path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    cache_info.main(["--json", str(path)])
    (info,) = json.loads(capsys.readouterr().out)
    return info


def text_of(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    cache_info.main([str(path)])
    return capsys.readouterr().out


def test_tells_size_and_age(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(path, (0, 86400))
    info = info_of(path, capsys)
    assert (info["path"], info["target"]) == (str(path), str(path))
    assert (info["error"], info["size"]) == (None, 7000)
    assert info["modified"] == "1970-01-02T00:00:00+00:00"
    assert info["age_seconds"] > 1e9
    assert info["temporary_files"] == []
    text = text_of(path, capsys)
    assert "7,000 bytes" in text
    assert re.search(r"\d{5} days ago", text)


def test_runs_as_a_program(path: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.bin"
    program = [sys.executable, "-m", "torch_tensorrt.runtime.cache_info"]
    for paths, code in (([path], 0), ([path, missing], 1)):
        result = subprocess.run([*program, *paths], capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (code, "")
        assert all(str(p) in result.stdout for p in paths)


def test_a_missing_file_is_said_and_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "missing.bin"
    assert cache_info.main([str(path)]) == 1
    assert "there is no such file" in capsys.readouterr().out
    info = info_of(path, capsys)
    assert info["error"] == "there is no such file"
    assert info["size"] is info["modified"] is info["age_seconds"] is None
    assert info["lock"]["state"] == "missing"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "error"),
    [("", "not a regular file"), ("model.bin/x", "Not a directory")],
)
def test_what_can_be_no_cache_is_said(
    place: str, error: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cache_info.main([str(path.parent / place)]) == 1
    assert error in capsys.readouterr().out


def test_an_empty_file_is_no_cache(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes(b"")
    assert "0 bytes, which counts as no cache" in text_of(path, capsys)


@pytest.mark.parametrize(
    ("holder", "mode"),
    [
        (filelock_holder, "exclusive"),
        (cpp_exclusive, "exclusive"),
        (cpp_shared, "shared"),
    ],
)
def test_tells_who_holds_the_lock(
    holder: Callable[[Path], AbstractContextManager[LineProcess]],
    mode: str,
    path: Path,
    lock_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with holder(lock_path) as child:
        lock = info_of(path, capsys)["lock"]
        text = text_of(path, capsys)
    command = shlex.join(child.command)
    expected = {"pid": child.pid, "command": command, "mode": mode}
    assert lock["path"] == str(lock_path)
    assert (lock["state"], lock["holders"]) == (mode, [expected])
    assert f"{mode}, by process {child.pid}: " in text
    assert "\n" not in text.partition(f"process {child.pid}: ")[2].rstrip("\n")


def test_tells_of_each_reader(
    path: Path, lock_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with cpp_shared(lock_path) as one, cpp_shared(lock_path) as other:
        lock = info_of(path, capsys)["lock"]
    assert lock["state"] == "shared"
    assert {holder["pid"] for holder in lock["holders"]} == {one.pid, other.pid}


def test_tells_of_a_forked_child_that_keeps_the_lock(
    path: Path, lock_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
child = os.fork()
if child:
    print(child, flush=True)
    os._exit(0)
sys.stdin.read()
"""
    with python(code, lock_path) as parent:
        parent.process.wait(60)
        lock = info_of(path, capsys)["lock"]
        (holder,) = lock["holders"]
        assert str(holder["pid"]) == parent.hear()
    assert holder["mode"] == "exclusive"


def test_a_lock_that_nobody_holds_is_free(
    path: Path, lock_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with filelock_holder(lock_path):
        pass
    lock = info_of(path, capsys)["lock"]
    assert lock["holders"] == []
    if IS_IN_CONTAINER:
        assert lock["state"] == "unknown"
        assert "outside this container" in lock["note"]
    else:
        assert (lock["state"], lock["note"]) == ("free", None)


def test_root_is_not_needed_to_see_other_users(lock_path: Path) -> None:
    status = lock_path.stat()
    file = (status.st_dev, status.st_ino)
    with filelock_holder(lock_path) as child:
        try:
            os.seteuid(SOMEBODY_ELSE)
        except OSError as error:
            pytest.skip(f"only root can act as somebody else: {error}")
        try:
            holders = find_lock_holders({file}).of(file)
        finally:
            os.seteuid(0)
    assert [(holder.pid, holder.mode) for holder in holders] == [
        (child.pid, "exclusive")
    ]


def test_a_lock_that_is_a_link_is_said(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"{path}.lock").symlink_to("elsewhere")
    lock = info_of(path, capsys)["lock"]
    assert (lock["state"], lock["note"]) == ("unknown", "it is a symbolic link")


def test_follows_a_link_to_the_file_but_not_for_the_lock(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "link.bin"
    link.symlink_to(path.name)
    with filelock_holder(Path(f"{link}.lock")) as child:
        info = info_of(link, capsys)
        assert info_of(path, capsys)["lock"]["state"] == "missing"
    assert (info["path"], info["target"]) == (str(link), str(path))
    assert info["size"] == 7000
    assert info["lock"]["path"] == f"{link}.lock"
    assert [holder["pid"] for holder in info["lock"]["holders"]] == [child.pid]
    assert f"leads to  {path}" in text_of(link, capsys)


def test_tells_of_a_save_and_of_what_it_leaves_when_killed(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = """
import os, sys
from torchtrt_cache.file_lock import LockWaits
from torch_tensorrt.runtime._cache.runtime_cache_file import RuntimeCacheFile

def fsync(descriptor):
    print("written", flush=True)
    sys.stdin.read()

os.fsync = fsync
file = RuntimeCacheFile(sys.argv[1], LockWaits())
file.replace(memoryview(b"new" * 100), file.read().generation)
"""
    with python(code, path) as child:
        assert child.hear() == "written"
        info = info_of(path, capsys)
        (file,) = info["temporary_files"]
        (holder,) = file["holders"]
        assert info["lock"]["state"] == "exclusive"
        assert info["lock"]["holders"] == [holder]
        assert holder["pid"] == child.pid
        assert file["state"] == "writing"
        assert "writing   " in text_of(path, capsys)
    (left,) = info_of(path, capsys)["temporary_files"]
    assert left["state"] == ("unknown" if IS_IN_CONTAINER else "left")
    assert (left["path"], left["size"]) == (file["path"], 300)
    assert left["holders"] == []
    assert left["path"] in text_of(path, capsys)


def test_other_files_are_no_temporary_ones(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (
        f"{path}.tmp",
        f"{path}.12-0123456789abcdef.tmp.old",
        f"{path}.12-0123456789ABCDEF.tmp",
        f"x{path.name}.12-0123456789abcdef.tmp",
    ):
        (path.parent / name).touch()
    assert info_of(path, capsys)["temporary_files"] == []


def test_obeys_no_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a\x1b[2J\nb"
    path.touch()
    assert str(tmp_path / "a\\x1b[2J\\nb") in text_of(path, capsys)


recorded: list[str] | None = None


def record(event: str, arguments: tuple[Any, ...]) -> None:
    if recorded is not None and event in ("open", "fcntl.flock", "fcntl.lockf"):
        recorded.append(f"{event} {arguments[0]}")


sys.addaudithook(record)  # for the rest of the process


@contextmanager
def recording() -> Iterator[list[str]]:
    global recorded
    recorded = []
    try:
        yield recorded
    finally:
        recorded = None


def snapshot(folder: Path) -> dict[Path, os.stat_result]:
    return {path: path.lstat() for path in [folder, *sorted(folder.iterdir())]}


def test_opens_locks_and_changes_nothing(
    path: Path, lock_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"{path}.12-0123456789abcdef.tmp").touch()
    before = snapshot(path.parent)
    with recording() as events:
        info = info_of(path, capsys)
    assert len(info["temporary_files"]) == 1
    assert snapshot(path.parent) == before
    assert [event for event in events if str(path.parent) in event] == []
    assert [event for event in events if not event.startswith("open ")] == []
    assert any(event.startswith("open /proc/") for event in events)


def test_the_keys_of_the_json_are_the_documented_ones(
    path: Path, lock_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"{path}.12-0123456789abcdef.tmp").touch()
    with filelock_holder(lock_path):
        info = info_of(path, capsys)
    (file,) = info["temporary_files"]
    (holder,) = info["lock"]["holders"]
    times = {"modified", "age_seconds"}
    keys = [
        {"path", "target", "error", "size", "lock", "temporary_files", *times},
        {"path", "state", "holders", "note"},
        {"path", "size", "state", "holders", *times},
        {"pid", "command", "mode"},
    ]
    assert [set(part) for part in (info, info["lock"], file, holder)] == keys
    for key in set().union(*keys):
        assert re.search(rf"\b{key}\b", cache_info.__doc__ or ""), key
