"""Where the default runtime cache is, and who must not have write access to it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import platformdirs
import pytest

from torch_tensorrt.runtime import default_runtime_cache_path
from torchtrt_cache.trust import NotTrustedError, resolve_trusted

SOMEBODY_ELSE = 54321

NAME = "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.0.bin"


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


@pytest.fixture
def directory(cache_home: Path) -> Path:
    """The directory as the first call creates it."""
    path = default_runtime_cache_path()
    assert path is not None
    return Path(path)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    previous = os.umask(mask)
    try:
        yield
    finally:
        os.umask(previous)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("mask", [0, 0o022])
def test_makes_a_private_directory_and_no_file(
    mask: int, cache_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = f"{cache_home}/torch_tensorrt/"
    with umask(mask):
        assert default_runtime_cache_path() == expected
        assert default_runtime_cache_path() == expected
    assert mode_of(cache_home) == mode_of(cache_home / "torch_tensorrt") == 0o700
    assert list((cache_home / "torch_tensorrt").iterdir()) == []
    assert caplog.records == []


def test_leaves_the_modes_that_are_there(cache_home: Path) -> None:
    (cache_home / "torch_tensorrt").mkdir(parents=True)
    cache_home.chmod(0o755)
    (cache_home / "torch_tensorrt").chmod(0o750)
    assert default_runtime_cache_path() is not None
    assert mode_of(cache_home) == 0o755
    assert mode_of(cache_home / "torch_tensorrt") == 0o750


def test_many_may_make_it_at_once(cache_home: Path) -> None:
    threads = 8
    barrier = threading.Barrier(threads)

    def ask() -> str | None:
        barrier.wait(60)
        return default_runtime_cache_path()

    with ThreadPoolExecutor(threads) as pool:
        paths = [task.result() for task in [pool.submit(ask) for _ in range(threads)]]
    assert paths == [f"{cache_home}/torch_tensorrt/"] * threads


def sticky_parent(directory: Path) -> None:
    directory.parent.chmod(0o1777)


def lax_umask(directory: Path) -> None:
    for name in (NAME, f"{NAME}.lock"):
        (directory / name).touch()
        (directory / name).chmod(0o666)


def link_to_a_private_directory(directory: Path) -> None:
    elsewhere = directory.parent / "elsewhere"
    directory.rename(elsewhere)
    directory.symlink_to("../cache/elsewhere")


def link_to_a_private_file(directory: Path) -> None:
    elsewhere = directory.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "cache.bin").touch()
    (directory / NAME).symlink_to(elsewhere / "cache.bin")


def link_to_a_file_to_be(directory: Path) -> None:
    (directory / NAME).symlink_to(directory.parent / "cache.bin")


def other_file(directory: Path) -> None:
    (directory / "README").touch()
    (directory / "README").chmod(0o666)
    directory.chmod(0o755)


@pytest.mark.parametrize(
    "arrange",
    [
        sticky_parent,
        lax_umask,
        link_to_a_private_directory,
        link_to_a_private_file,
        link_to_a_file_to_be,
        other_file,
    ],
)
def test_is_given_where_nobody_else_can_write(
    arrange: Callable[[Path], None], directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arrange(directory)
    assert default_runtime_cache_path() == f"{directory}/"
    assert caplog.records == []


def test_takes_the_write_bits_of_a_lax_umask_away(directory: Path) -> None:
    """Otherwise the rule for all paths would refuse the file."""
    lax_umask(directory)
    (directory / "README").touch()
    (directory / "README").chmod(0o666)
    with pytest.raises(NotTrustedError):
        resolve_trusted(str(directory / NAME))
    assert default_runtime_cache_path() is not None
    for name in (NAME, f"{NAME}.lock"):
        assert mode_of(directory / name) == 0o644
    assert resolve_trusted(str(directory / NAME)) is not None
    assert mode_of(directory / "README") == 0o666


# Each turns the path into one that is refused. Returns the text that the warning must contain.
Arrangement = Callable[[Path], str]


def chmod(mode: int, name: str = "", directory_mode: int = 0o700) -> Arrangement:
    def arrange(directory: Path) -> str:
        directory.chmod(directory_mode)
        path = directory / name
        if name and not path.exists():
            path.touch()
        path.chmod(mode)
        return f"may write '{path.resolve()}' (mode {mode:04o}, try chmod go-w)"

    return arrange


def link_through_a_shared_directory(directory: Path) -> str:
    shared = directory.parent / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    directory.rename(shared / "mine")
    directory.symlink_to(shared / "mine")
    return f"may write '{shared}'"


def link_to_a_shared_file(directory: Path) -> str:
    shared = directory.parent / "shared"
    shared.mkdir()
    (shared / "cache.bin").touch()
    (directory / NAME).symlink_to("../shared/cache.bin")
    shared.chmod(0o777)
    return f"may write '{shared}'"


def link_to_itself(directory: Path) -> str:
    (directory / NAME).symlink_to(NAME)
    return "Too many levels of symbolic links"


def file_in_the_place_of_the_directory(directory: Path) -> str:
    directory.rmdir()
    directory.parent.rmdir()
    directory.parent.touch()
    return "Not a directory"


def file_as_the_directory(directory: Path) -> str:
    directory.rmdir()
    directory.touch()
    return f"'{directory}' is not a directory"


def link_into_a_missing_directory(directory: Path) -> str:
    directory.rmdir()
    directory.symlink_to("missing/directory")
    return f"the directory of '{directory}' is missing"


@pytest.mark.parametrize(
    "arrange",
    [
        pytest.param(chmod(0o770), id="group may write the directory"),
        pytest.param(chmod(0o1777), id="directory like /tmp"),
        pytest.param(chmod(0o777, ".."), id="all may write its parent"),
        pytest.param(chmod(0o660, NAME, 0o750), id="group may write the file"),
        pytest.param(chmod(0o606, f"{NAME}.lock", 0o711), id="all may write the lock"),
        link_through_a_shared_directory,
        link_to_a_shared_file,
        link_to_itself,
        file_in_the_place_of_the_directory,
        file_as_the_directory,
        link_into_a_missing_directory,
    ],
)
def test_is_refused(
    arrange: Arrangement, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reason = arrange(directory)
    assert default_runtime_cache_path() is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert reason in record.getMessage()
    assert f"because '{directory}' can't be trusted" in record.getMessage()
    assert "XDG_CACHE_HOME" in record.getMessage()


GiveAway = Callable[[Path], None]


@pytest.fixture
def give_away() -> Iterator[GiveAway]:
    """Gives a path to another user. At the end it is given back, so that pytest can remove it."""
    with ExitStack() as stack:

        def give_away(path: Path) -> None:
            try:
                os.chown(path, SOMEBODY_ELSE, -1, follow_symlinks=False)
            except OSError as error:
                pytest.skip(f"only root can change the owner of a file: {error}")
            us = os.geteuid()
            stack.callback(os.chown, path, us, -1, follow_symlinks=False)

        yield give_away


@pytest.mark.parametrize("name", ["", "..", NAME, f"{NAME}.lock"])
def test_is_refused_if_somebody_else_owns(
    name: str,
    directory: Path,
    give_away: GiveAway,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = directory / name
    if not path.exists():
        path.touch()
    give_away(path)
    assert default_runtime_cache_path() is None
    (record,) = caplog.records
    message = record.getMessage()
    assert f"'{path.resolve()}' belongs to user {SOMEBODY_ELSE}" in message


def test_is_refused_if_somebody_else_owns_a_link(
    directory: Path, give_away: GiveAway, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = directory.parent / "elsewhere"
    directory.rename(elsewhere)
    directory.symlink_to(elsewhere)
    give_away(directory)
    directory.parent.chmod(0o1777)
    assert default_runtime_cache_path() is None
    assert f"'{directory}' belongs to user {SOMEBODY_ELSE}" in caplog.text


def test_listing_it_changes_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.chmod(0o777)
    monkeypatch.setenv("TORCHTRT_TRUSTED_PATHS", str(directory))
    assert default_runtime_cache_path() is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anywhere")
def test_is_refused_where_the_directory_can_not_be_made(
    cache_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_home.mkdir(mode=0o500)
    assert default_runtime_cache_path() is None
    assert "Permission denied" in caplog.text


def test_is_refused_if_it_is_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache\udcff"))
    assert default_runtime_cache_path() is None
    assert "not valid UTF-8" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", ["~/.cache/torch_tensorrt", RuntimeError("no home")])
def test_is_refused_without_a_home_directory(
    answer: str | RuntimeError,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """platformdirs before 4.14 returns a path with a tilde. Later versions raise RuntimeError."""

    def user_cache_dir(*_: object, **__: object) -> str:
        if isinstance(answer, str):
            return answer
        raise answer

    monkeypatch.setattr(platformdirs, "user_cache_dir", user_cache_dir)
    assert default_runtime_cache_path() is None
    (record,) = caplog.records
    assert "no home" in record.getMessage()
