"""torchtrt-cache info, with locks held by other processes, and on directories."""

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
from torchtrt_cache import info as info_module
from torchtrt_cache.__main__ import main
from torchtrt_cache.kinds import RuntimeCacheKind
from torchtrt_cache.lock_holders import find_lock_holders

SOMEBODY_ELSE = 54321
# In a container such as Bazel's sandbox, the holders outside can't be seen.
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
    main(["info", "--json", str(path)])
    (info,) = json.loads(capsys.readouterr().out)
    return info


def text_of(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    main(["info", str(path)])
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


@pytest.mark.parametrize(
    "program", [["torchtrt_cache", "info"], ["torch_tensorrt.runtime.cache_info"]]
)
def test_runs_as_a_program(program: list[str], path: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.bin"
    for paths, code in (([path], 0), ([path, missing], 1)):
        command = [sys.executable, "-m", *program, *map(str, paths)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (code, "")
        assert all(str(p) in result.stdout for p in paths)


def test_a_missing_file_is_said_and_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "missing.bin"
    assert main(["info", str(path)]) == 1
    assert "there is no such file" in capsys.readouterr().out
    info = info_of(path, capsys)
    assert info["error"] == "there is no such file"
    assert info["size"] is info["modified"] is info["age_seconds"] is None
    assert info["lock"]["state"] == "missing"
    assert list(tmp_path.iterdir()) == []


def test_starts_without_torch(path: Path) -> None:
    code = """
import sys
from torchtrt_cache.__main__ import main
for path in sys.argv[1:]:
    main(["info", path])
main(["prune", sys.argv[2], "--max-size", "0"])
assert not {"torch", "torch_tensorrt", "tensorrt_rtx", "numpy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, path, path.parent], check=True)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("", "there is no cache file in it"),
        ("fifo", "it is not a regular file"),
        ("model.bin/x", "Not a directory"),
        ("model.bin/", "Not a directory"),
        ("missing/", "No such file or directory"),
    ],
)
def test_what_can_be_no_cache_is_said(
    place: str, error: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(path.with_name("fifo"))
    where = f"{path.parent}/{place}"
    assert main(["info", where]) == 1
    assert error in capsys.readouterr().out
    assert main(["info", "--json", where]) == 1
    assert json.loads(capsys.readouterr().out)[0]["error"] == error


@pytest.mark.parametrize("seconds", [-(2**33), 2**33])
def test_a_time_that_nobody_wrote_it_at_is_shown(
    seconds: int, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.utime(path, (0, seconds))
    assert "7,000 bytes" in text_of(path, capsys)


L4 = RuntimeCacheKind("NVIDIA L4", 89, "1.6.1.120", "linux", 13000)
L4_FILE = "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.0.bin"
A6000_FILE = "nvidia-rtx-a6000-sm86-rtx1.6.1.120-linux-driver12.8.bin"
OLD_DEFAULT = "runtime_cache-1.5.0.7.bin"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with three caches and files that do not count, on a machine with an L4."""
    directory = tmp_path / "caches"
    directory.mkdir()
    for days, name in enumerate((A6000_FILE, OLD_DEFAULT, L4_FILE)):
        (directory / name).write_bytes(b"kernels" * 1000)
        (directory / f"{name}.lock").touch()
        os.utime(directory / name, (0, (days + 1) * 86400))
        os.utime(directory / f"{name}.lock", (0, 0))
    (directory / "notes.bin").touch()
    (directory / f"{L4_FILE}.1-0123456789abcdef.tmp").touch()
    monkeypatch.setattr(info_module, "kinds_of_machine", lambda: [L4])
    return directory


def test_a_directory_has_a_row_for_each_kind_most_recently_used_first(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.utime(directory / f"{A6000_FILE}.lock", (0, 10 * 86400))
    with filelock_holder(directory / f"{OLD_DEFAULT}.lock") as child:
        info = info_of(directory, capsys)
        path, header, *rows, legend = text_of(directory, capsys).splitlines()
    assert (info["path"], info["error"]) == (str(directory), None)
    files = [A6000_FILE, L4_FILE, OLD_DEFAULT]
    assert [kind["path"] for kind in info["kinds"]] == [
        str(directory / file) for file in files
    ]
    assert [f"{kind['name']}.bin" for kind in info["kinds"]] == files
    a6000, l4, old = info["kinds"]
    assert a6000["last_used"] == "1970-01-11T00:00:00+00:00"
    assert a6000["modified"] == "1970-01-02T00:00:00+00:00"
    assert l4["last_used"] == l4["modified"] == "1970-01-04T00:00:00+00:00"
    assert l4["kind"] == {
        "gpu": "nvidia-l4",
        "compute_capability": 89,
        "tensorrt_rtx": "1.6.1.120",
        "os_family": "linux",
        "cuda_driver": 13000,
    }
    assert old["kind"] is None
    assert old["lock"]["holders"][0]["pid"] == child.pid
    assert len(l4["temporary_files"]) == 1
    for key in ("is_of_this_machine", "is_loaded_here"):
        assert [k[key] for k in info["kinds"]] == [False, True, False]

    assert path == str(directory)
    assert header.split() == ["kind", "size", "last", "use", "modified", "lock"]
    firsts = [row.split()[0] for row in rows]
    assert firsts == [A6000_FILE[:-4], "*", OLD_DEFAULT[:-4]]
    assert all("7,000 bytes" in row and "days ago" in row for row in rows)
    assert rows[2].endswith(" held")
    assert legend == "  * is what this machine would use"


def test_the_kind_of_this_machine_is_listed_before_it_has_a_file(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / L4_FILE).unlink()
    l4 = info_of(directory, capsys)["kinds"][-1]
    assert (l4["name"], l4["is_of_this_machine"]) == (L4_FILE[:-4], True)
    assert l4["error"] == "there is no such file"
    assert l4["size"] is l4["last_used"] is None
    row = rf"\* +{L4_FILE[:-4]} +there is no such file"
    assert re.search(row, text_of(directory, capsys))
    assert main(["info", str(directory)]) == 0


def test_what_a_start_loads_from_another_driver_is_marked(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = L4_FILE.replace("13.0", "12.8")  # of another major version
    (directory / L4_FILE).write_bytes(b"")
    old_default = f"runtime_cache-{L4_FILE.split('rtx')[1].split('-')[0]}.bin"
    for name in (older, old_default):
        (directory / name).write_bytes(b"kernels")
    kinds = info_of(directory, capsys)["kinds"]
    (loaded,) = (kind for kind in kinds if kind["is_loaded_here"])
    assert (loaded["name"], loaded["is_of_this_machine"]) == (old_default[:-4], False)
    text = text_of(directory, capsys)
    assert re.search(rf"\+ +{re.escape(old_default[:-4])} ", text)
    assert text.splitlines()[-1].startswith("  + is what it would load now")


def test_an_unknown_kind_of_this_machine_is_said(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(info_module, "kinds_of_machine", list)
    kinds = info_of(directory, capsys)["kinds"]
    assert not any(kind["is_of_this_machine"] for kind in kinds)
    assert "the kind of this machine is unknown" in text_of(directory, capsys)


def test_what_has_the_name_of_a_kind_and_is_no_file_is_said(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (A6000_FILE, OLD_DEFAULT):
        (directory / name).unlink()
    (directory / A6000_FILE).mkdir()
    (directory / OLD_DEFAULT).symlink_to(L4_FILE)
    _, link, folder = info_of(directory, capsys)["kinds"]
    assert (link["target"], link["size"]) == (str(directory / L4_FILE), 7000)
    assert (folder["error"], folder["size"]) == ("it is not a regular file", None)
    assert "it is not a regular file" in text_of(directory, capsys)


def test_a_directory_is_inspected_through_a_link(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = directory.with_name("link")
    link.symlink_to(directory.name)
    info = info_of(link, capsys)
    assert info["path"] == str(link)
    assert info["kinds"][0]["path"] == str(link / L4_FILE)
    assert info["kinds"][0]["target"] == str(directory / L4_FILE)


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
            pytest.skip(f"only root can act as another user: {error}")
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
from torchtrt_cache.runtime_cache_file import RuntimeCacheFile

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


def snapshot(folder: Path) -> dict[Path, tuple[object, ...]]:
    """The status of the folder and its files, without access times."""
    return {path: _status(path) for path in [folder, *sorted(folder.iterdir())]}


def _status(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    owners = (status.st_uid, status.st_gid)
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return status.st_ino, status.st_mode, status.st_nlink, status.st_size, owners, times


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


def test_opens_locks_and_changes_nothing_in_a_directory(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(directory)
    with recording() as events:
        info_of(directory, capsys)
    assert snapshot(directory) == before
    assert [event for event in events if str(directory) in event] == []
    assert [event for event in events if not event.startswith("open ")] == []


def test_the_keys_of_the_json_of_a_directory_are_the_documented_ones(
    path: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_file = set(info_of(path, capsys))
    info = info_of(directory, capsys)
    kind = info["kinds"][0]
    added = {"name", "kind", "last_used", "is_of_this_machine", "is_loaded_here"}
    fields = {"gpu", "compute_capability", "tensorrt_rtx", "os_family", "cuda_driver"}
    assert set(info) == {"path", "error", "kinds"}
    assert set(kind) == of_file | added
    assert set(kind["kind"]) == fields
    for key in {*info, *added, *fields}:
        assert re.search(rf"\b{key}\b", info_module.__doc__ or ""), key


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
        assert re.search(rf"\b{key}\b", info_module.__doc__ or ""), key
