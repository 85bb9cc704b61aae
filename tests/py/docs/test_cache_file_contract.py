"""The code in docs/cache-file-contract.md does what the document says, alongside both runtimes."""

from __future__ import annotations

import io
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.py.docs.closed_directory import closed_directory
from tests.py.docs.markdown_blocks import read_blocks, run_python
from torch_tensorrt.runtime import RuntimeCache

DOCUMENT = Path(__file__).parents[3] / "docs" / "cache-file-contract.md"
BLOCKS = read_blocks(DOCUMENT)
SCRIPTS = [block.text for block in BLOCKS if block.language == "sh"]

WRITERS, ROUNDS = 4, 15
DEADLINE = 60  # seconds

Merge = Callable[[bytes], bytes]


def functions_of_document() -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    for block in BLOCKS:
        if block.language == "python":
            run_python(block, namespace)
    return namespace


FUNCTIONS = functions_of_document()
read_cache: Callable[[str], bytes] = FUNCTIONS["read_cache"]
update_cache: Callable[[str, Merge], None] = FUNCTIONS["update_cache"]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache.bin"


@pytest.fixture(params=["C++", "Python"])
def cache(request: pytest.FixtureRequest, path: Path) -> RuntimeCache:
    return RuntimeCache(path, use_python_runtime=request.param == "Python")


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


def save(cache: RuntimeCache, data: bytes) -> None:
    cache.load_from_stream(io.BytesIO(data))
    assert cache.save() == len(data)


def load(cache: RuntimeCache) -> bytes:
    cache.load()
    stream = io.BytesIO()
    cache.save_to_stream(stream)
    return stream.getvalue()


def run_script(script: str) -> int:
    return subprocess.run(["sh", "-c", script], timeout=DEADLINE).returncode


def test_every_block_is_run() -> None:
    languages = [block.language for block in BLOCKS]
    assert languages == ["python", "python", "sh", "sh", "sh"]
    assert not any(block.reason_not_to_run for block in BLOCKS)


def test_reads_what_a_runtime_saved(cache: RuntimeCache, path: Path) -> None:
    save(cache, b"kernels")
    assert read_cache(str(path)) == b"kernels"


def test_reading_what_is_not_there_creates_nothing(path: Path) -> None:
    assert read_cache(str(path)) == b""
    assert names(path) == set()


def test_reads_in_a_read_only_directory(path: Path) -> None:
    path.write_bytes(b"baked")
    with closed_directory(path.parent):
        assert read_cache(str(path)) == b"baked"
    assert names(path) == {"cache.bin"}


def test_reads_where_the_lock_is_closed(path: Path) -> None:
    path.write_bytes(b"kernels")
    path.with_name("cache.bin.lock").touch(0)
    with closed_directory(path.parent):
        assert read_cache(str(path)) == b"kernels"


def test_a_use_sets_the_time_of_the_lock_file(path: Path) -> None:
    path.write_bytes(b"kernels")
    lock = path.with_name("cache.bin.lock")
    lock.touch()
    before = path.stat().st_mtime_ns
    for use in (lambda: read_cache(str(path)), lambda: update_cache(str(path), bytes)):
        os.utime(lock, (0, 0))
        use()
        assert lock.stat().st_mtime > 0
    assert path.stat().st_mtime_ns == before


def test_a_first_file_is_not_for_everybody_to_write(path: Path) -> None:
    mask = os.umask(0)
    try:
        update_cache(str(path), lambda _: b"kernels")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


def test_a_lock_that_could_be_created_must_be_taken(path: Path) -> None:
    path.write_bytes(b"kernels")
    path.with_name("cache.bin.lock").symlink_to("elsewhere")
    with pytest.raises(OSError, match=r"cache\.bin\.lock"):
        read_cache(str(path))


def test_a_runtime_loads_what_it_wrote(cache: RuntimeCache, path: Path) -> None:
    update_cache(str(path), lambda disk: disk + b"kernels")
    assert load(cache) == b"kernels"
    assert names(path) == {"cache.bin", "cache.bin.lock"}


def test_writing_keeps_mode_and_link_and_ages_the_file(path: Path) -> None:
    target = path.with_name("target.bin")
    path.symlink_to(target.name)
    update_cache(str(path), lambda _: b"kernels")
    target.chmod(0o660)
    future = target.stat().st_mtime_ns + 10**12
    os.utime(target, ns=(future, future))
    before = target.stat()

    update_cache(str(path), lambda disk: disk[::-1])

    after = target.stat()
    assert path.is_symlink()
    assert target.read_bytes() == b"slenrek"
    assert stat.S_IMODE(after.st_mode) == 0o660
    assert after.st_mtime_ns == before.st_mtime_ns + 1
    assert names(path) == {"cache.bin", "cache.bin.lock", "target.bin"}


@pytest.mark.parametrize("merged", [b"kernels", b""])
def test_nothing_new_is_not_written(path: Path, merged: bytes) -> None:
    path.write_bytes(b"kernels")
    before = path.stat()
    update_cache(str(path), lambda _: merged)
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert path.read_bytes() == b"kernels"


def test_a_failed_write_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"kernels")

    def fail(fd: int) -> None:
        raise OSError("no space")

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no space"):
            update_cache(str(path), lambda _: b"others")
    assert path.read_bytes() == b"kernels"
    assert names(path) == {"cache.bin", "cache.bin.lock"}


def start_tool(path: Path, code: str) -> subprocess.Popen[bytes]:
    """Starts a process with the document's functions and `path`, but without torch."""
    blocks = [block.text for block in BLOCKS if block.language == "python"]
    source = "\n".join([*blocks, "import sys", "path = sys.argv[1]", code])
    return subprocess.Popen([sys.executable, "-c", source, str(path)])


DIE_BEFORE_THE_RENAME = """
import signal
os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
update_cache(path, lambda disk: disk + b", others")
"""


def test_runtimes_sweep_what_a_killed_writer_left(
    cache: RuntimeCache, path: Path
) -> None:
    path.write_bytes(b"kernels")
    tool = start_tool(path, DIE_BEFORE_THE_RENAME)
    assert tool.wait(DEADLINE) == -signal.SIGKILL
    assert path.read_bytes() == b"kernels"
    assert len(names(path)) == 3  # with the temporary file

    cache.load()
    save(cache, b"kernels, more")
    assert names(path) == {"cache.bin", "cache.bin.lock"}


def add_lines(number: int) -> str:
    return f"""
for i in range({ROUNDS}):
    update_cache(path, lambda disk: disk + b"writer {number}, line %d\\n" % i)
"""


def test_writers_lose_nothing_and_readers_see_whole_files(
    cache: RuntimeCache, path: Path
) -> None:
    path.write_bytes(b"first\n")
    tools = [start_tool(path, add_lines(number)) for number in range(WRITERS)]
    seen = 1
    while any(tool.poll() is None for tool in tools):
        for data in (read_cache(str(path)), path.read_bytes(), load(cache)):
            assert data.startswith(b"first\n") and data.endswith(b"\n")
            assert data.count(b"\n") >= seen
            seen = data.count(b"\n")
    assert [tool.returncode for tool in tools] == [0] * WRITERS
    assert set(path.read_text().splitlines()) == {"first"} | {
        f"writer {number}, line {i}" for number in range(WRITERS) for i in range(ROUNDS)
    }


def test_script_copies(cache: RuntimeCache, path: Path) -> None:
    save(cache, b"kernels")
    assert run_script(SCRIPTS[0]) == 0
    assert path.with_name("backup.bin").read_bytes() == b"kernels"


@pytest.mark.parametrize("there", [None, b"", b"kernels"])
def test_script_installs_where_there_is_none(
    cache: RuntimeCache, path: Path, there: bytes | None
) -> None:
    if there is not None:
        path.write_bytes(there)
    path.with_name("prewarmed.bin").write_bytes(b"prewarmed")
    assert run_script(SCRIPTS[1]) == 0
    assert load(cache) == (there or b"prewarmed")
    assert names(path) == {"cache.bin", "cache.bin.lock", "prewarmed.bin"}


def test_script_resets(cache: RuntimeCache, path: Path) -> None:
    save(cache, b"kernels")
    assert run_script(SCRIPTS[2]) == 0
    assert names(path) == {"cache.bin.lock"}
    assert load(RuntimeCache(path)) == b""


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_wait_for_the_lock_of_others(path: Path, script: str) -> None:
    path.write_bytes(b"kernels")
    flock = shutil.which("flock")
    assert flock, "util-linux's flock is missing"
    assert script.count("--timeout 10 ") == 1
    impatient = script.replace("--timeout 10 ", "--timeout 0.2 ")

    def try_while_held(disk: bytes) -> bytes:
        assert run_script(impatient) == 1
        assert names(path) == {"cache.bin", "cache.bin.lock"}
        return disk

    update_cache(str(path), try_while_held)
