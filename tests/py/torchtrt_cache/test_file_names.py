"""A directory where strangers chose the names: nothing crashes, and only caches are touched."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorrt_rtx as trt
import torch

from tests.py.runtime.runtime_cache_testing import (
    RUNTIMES,
    Log,
    handle_of,
    statistics_of,
)
from tests.py.torchtrt_cache.caches import DAY, Snapshot, set_age, snapshot
from torchtrt_cache.__main__ import main
from torchtrt_cache.kinds import files_to_load, is_cache_name, kind_named

NAMES = 10_000
GPUS = ["nvidia-l4", "nvidia-rtx-a6000", "x" * 128, "4", "4090-laptop", "a-sm89-rtx1"]
VERSIONS = [trt.__version__, "1.7.0", "1" * 32, "1"]
TEMPORARY = [".7-0123456789abcdef.tmp", ".4194304-ffffffffffffffff.merge"]
JUNK = b"\n\r\t\x1b\x7f \xff\xc3\x28ab-._*%'\"\\"
# Each turns the name of a kind into a name that no kind has.
SPOILERS: list[Callable[[str], str]] = [
    str.upper,
    lambda name: name + "\n",
    lambda name: "\n" + name,
    lambda name: name + "~",
    lambda name: "-" + name,
    lambda name: " " + name,
    lambda name: "x" * 255 + name,
    lambda name: "nvidia\u212a" + name,
    lambda name: name.replace("-sm", "--sm"),
    lambda name: name.replace("-sm", "-sm0"),
    lambda name: name.replace("-rtx", "\x1b[2J-rtx"),
    lambda name: name.replace("linux", "\udcff"),
    lambda name: name.replace("driver", "driver0"),
    lambda name: name.replace("driver", "driver\u0661"),
    lambda name: name.replace(".bin", "0000.bin"),
    lambda name: name.replace(".bin", ""),
    lambda name: name.replace(".bin", ".bin.bin"),
]


class Stranger:
    """Fills a directory with odd files. The names are the same each time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.caches: list[str] = []
        self._random = random.Random(15)
        self._names: set[str] = set()
        makers = [self._cache, self._near_cache, self._temporary, self._junk]
        while len(self._names) < NAMES:
            self._random.choice(makers)()

    def _kind(self) -> str:
        pick, below = self._random.choice, self._random.randrange
        return (
            f"{pick(GPUS)}-sm{below(1000)}-rtx{pick(VERSIONS)}"
            f"-linux-driver{below(20)}.{below(20)}.bin"
        )

    def _put(self, name: str, is_file: bool) -> bool:
        """Returns True if the file was made: the name is new and the file system allows it."""
        path = self.directory / name
        if name in self._names or name in (".", ".."):
            return False
        try:
            if is_file:
                path.write_bytes(bytes(self._random.choice([0, 1, 1000])))
            else:
                self._put_odd(path)
        except OSError as error:
            assert error.errno in (errno.ENAMETOOLONG, errno.EILSEQ), ascii(name)
            return False
        set_age(path, self._random.randrange(60) + 0.5)
        self._names.add(name)
        return True

    def _put_odd(self, path: Path) -> None:
        kind = self._random.randrange(4)
        if kind == 0:
            path.mkdir()
        elif kind == 1:
            os.mkfifo(path)
        elif kind == 2:
            os.mknod(path, stat.S_IFSOCK | 0o600)
        else:
            targets = ["/etc/passwd", ".", "missing", path.name, *self.caches[:100]]
            path.symlink_to(self._random.choice(targets))

    def _is_file(self) -> bool:
        return self._random.random() < 0.7

    def _cache(self) -> None:
        name = self._kind()
        if self._random.random() < 0.1:
            name = f"runtime_cache-1.{self._random.randrange(999)}.bin"
        is_file = self._is_file()
        if self._put(name, is_file) and is_file:
            self.caches.append(name)
        if self._random.random() < 0.7:
            self._put(f"{name}.lock", self._is_file())

    def _near_cache(self) -> None:
        self._put(self._random.choice(SPOILERS)(self._kind()), self._is_file())

    def _temporary(self) -> None:
        of_cache = self._random.choice([self._kind(), *self.caches[:100]])
        self._put(of_cache + self._random.choice(TEMPORARY), self._is_file())

    def _junk(self) -> None:
        length = self._random.choice([1, 3, 20, 200, 255])
        name = bytes(self._random.choices(JUNK, k=length))
        self._put(os.fsdecode(name), self._is_file())


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    stranger = Stranger(tmp_path_factory.mktemp("strange"))
    assert len(stranger.caches) > 1000
    return stranger


def test_info(stranger: Stranger, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(stranger.directory)
    assert main(["info", str(stranger.directory)]) == 0
    text = capsys.readouterr().out
    assert all(line.isprintable() for line in text.splitlines())
    assert main(["info", "--json", str(stranger.directory)]) == 0
    (info,) = json.loads(capsys.readouterr().out)
    names = {
        f"{kind['name']}.bin" for kind in info["kinds"] if kind["size"] is not None
    }
    caches = set(stranger.caches)
    assert caches <= names
    assert text.count("\n") == len(info["kinds"]) + 3
    for name in names - caches:
        assert (stranger.directory / name).is_symlink()
    assert snapshot(stranger.directory) == before


def test_files_to_load(stranger: Stranger) -> None:
    before = snapshot(stranger.directory)
    for name in stranger.caches[::20]:
        kind = kind_named(name)
        for path in files_to_load(str(stranger.directory), kind)[1:] if kind else []:
            directory, file = os.path.split(path)
            assert directory == str(stranger.directory)
            assert file in before
            assert file.startswith(name.partition(".")[0]) or "runtime_cache" in file
    assert snapshot(stranger.directory) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.skipif(
    "FAKE_CUDA_DRIVER_LIBRARY" not in os.environ, reason="only Bazel builds the driver"
)
def test_both_runtimes_load_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    ctypes.CDLL(os.environ["FAKE_CUDA_DRIVER_LIBRARY"])  # dlopen() finds it by its name
    log = Log(capfd, caplog)

    def load(runtime: str) -> tuple[int, str, list[str]]:
        """Returns the number of bytes loaded, their source, and the messages."""
        pending = handle_of(runtime, tmp_path)
        try:
            loaded = pending.load()
        except RuntimeError as error:
            message = str(error).rpartition("Can't load ")[2]
            return 0, "", [message, *log.warnings()]
        return loaded, statistics_of(pending).loaded_from, log.warnings()

    Stranger(tmp_path)
    before = snapshot(tmp_path)
    kinds = [kind for name in sorted(before) if (kind := kind_named(name))]
    kinds = [kind for kind in kinds if kind.tensorrt_rtx == trt.__version__]
    results = set()
    locks = set()
    for kind in kinds[::10]:
        monkeypatch.setenv("FAKE_CUDA_GPU", kind.gpu)
        major, minor = divmod(kind.compute_capability, 10)
        monkeypatch.setenv("FAKE_CUDA_CAPABILITY", f"{major}.{minor}")
        for driver in (kind.cuda_driver, kind.cuda_driver + 10):
            monkeypatch.setenv("FAKE_CUDA_DRIVER", str(driver))
            by_cpp, by_python = map(load, RUNTIMES)
            assert by_cpp == by_python, kind
            loaded, source, said = by_cpp
            results.add((loaded, bool(said)))
            if source:
                locks.add(f"{Path(source).name}.lock")
    after = snapshot(tmp_path)
    changed = {name for name in after if after[name] != before.get(name)}
    assert before.keys() <= after.keys()
    assert changed == locks
    assert results == {(0, False), (0, True), (1, False), (1000, False)}


def is_file(state: tuple[object, ...] | None) -> bool:
    return state is not None and stat.S_ISREG(int(str(state[0])))


def temporaries_of(name: str, tree: Snapshot) -> set[str]:
    return {t for suffix in TEMPORARY if is_file(tree.get(t := name + suffix))}


def kinds_without_a_cache(tree: Snapshot) -> set[str]:
    names = {n.removesuffix(suffix) for n in tree for suffix in TEMPORARY}
    kinds = {name for name in names - tree.keys() if is_cache_name(name)}
    return {name for name in kinds if temporaries_of(name, tree)}


def last_use(name: str, tree: Snapshot) -> int:
    names = {name} if name in tree else temporaries_of(name, tree)
    files = map(tree.get, {*names, f"{name}.lock"})
    return max(int(str(state[3])) for state in files if state and is_file(state))


def after_prune(
    tree: Snapshot, caches: set[str], to_go: Callable[[int, int], bool]
) -> set[str]:
    """The names that remain, including new lock files."""
    left = set(tree)
    kinds = sorted(
        caches | kinds_without_a_cache(tree),
        key=lambda name: (name in caches, last_use(name, tree), name),
        reverse=True,
    )
    for newer, name in enumerate(kinds):
        lock = f"{name}.lock"
        age = time.time_ns() - last_use(name, tree)
        has_usable_lock = lock not in tree or is_file(tree[lock])
        if to_go(newer, age) and age > DAY * 10**9 and has_usable_lock:
            left -= {name, *temporaries_of(name, tree)}
            left.add(lock)
    return left


def test_prune(stranger: Stranger) -> None:
    rules: list[tuple[list[str], Callable[[int, int], bool]]] = [
        (["--older-than", "45d"], lambda newer, age: age > 45 * DAY * 10**9),
        (["--keep-newest", "500"], lambda newer, age: newer >= 500),
        (["--max-size", "0"], lambda newer, age: True),
    ]
    for rule, to_go in rules:
        before = snapshot(stranger.directory)
        caches = before.keys() & stranger.caches
        expected = after_prune(before, caches, to_go)
        assert len(expected & caches) < len(caches)
        # Not every lock file can be locked.
        assert main(["prune", str(stranger.directory), *rule]) == 1
        after = snapshot(stranger.directory)
        assert after.keys() == expected
        for name, state in after.items():
            if name in before:
                assert state == before[name], ascii(name)
            else:
                assert is_file(state) and state[2] == 0, ascii(name)
