"""Which caches are trusted to be loaded and saved, in both languages."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.py.runtime.runtime_cache_testing import Log, names_in
from tests.py.runtime.stores import Store, write
from tests.py.runtime.unprivileged import Child, enter_user_namespace
from tests.util.processes.observed_calls import observed
from torch_tensorrt.logging import info
from torchtrt_cache.runtime_cache_file import read_offer

STRANGER = 54321  # the id of no user and no group here
OTHER = 54322
LONG_AGO = 1_000_000_000  # Unix time

Run = Callable[..., Any]


@pytest.fixture
def store(runtime: str, path: Path) -> Store:
    return Store(runtime, path)


@pytest.fixture
def shared(path: Path) -> Path:
    """A directory on the way to the cache, with the cache in it."""
    shared = path.parent / "shared"
    shared.mkdir()
    (shared / "cache.bin").write_bytes(b"theirs")
    return shared


def give(path: Path, user: int, group: int = -1) -> None:
    try:
        os.chown(path, user, group, follow_symlinks=False)
    except OSError as error:
        pytest.skip(f"only root can change the owner of a file: {error}")


def user(uid: int) -> str:
    with suppress(KeyError):
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    return str(uid)


def group(gid: int) -> str:
    with suppress(KeyError):
        return f"{grp.getgrgid(gid).gr_name} ({gid})"
    return str(gid)


def a_foreign_group() -> int:
    return next(g for g in range(50, 99) if g not in {os.getegid(), *os.getgroups()})


def read(store: Store) -> bytes:
    contents = store.read()
    assert contents is not None
    return contents[0]


def tree(directory: Path) -> set[tuple[str, int]]:
    return {(str(p), p.lstat().st_mtime_ns) for p in directory.rglob("*")}


def refusal_of(runtime: str, path: Path, top: Path) -> str:
    """The reason why the path is neither read nor written. Nothing below `top` changes."""
    store = Store(runtime, path)
    before = tree(top)
    reasons = set()
    for name, operation in (
        ("load", store.read),
        ("save", lambda: store.replace(b"ours")),
    ):
        with pytest.raises(RuntimeError) as failure:
            operation()
        message = str(failure.value)
        start = f"Can't {name} the runtime cache '{path}': "
        assert start in message
        reasons.add(message.partition(start)[2])
    with store.wait_for_turn(b"offered") as turn:
        assert not turn.is_saved and not turn.offers
        assert tree(top) == before
    assert tree(top) == before
    (reason,) = reasons
    return reason


def remedy_of(reason: str) -> list[str]:
    found = re.search(r"\. Try (.*), or list it in TORCHTRT_TRUSTED_PATHS$", reason)
    assert found, reason
    return shlex.split(found[1])


def described(problem: str, path: Path, owner: int, mode: int, remedy: str) -> str:
    return (
        f"'{path}' can't be trusted: {problem} (owner {user(owner)}, mode {mode:04o}). Try "
        f"{remedy} '{path}', or list it in TORCHTRT_TRUSTED_PATHS"
    )


def everybody_may_write_the_file(shared: Path) -> tuple[Path, str]:
    shared.chmod(0o700)  # grants no exception
    path = shared / "cache.bin"
    path.chmod(0o666)
    problem = "everybody may write it"
    return path, described(problem, path, os.geteuid(), 0o666, "chmod o-w")


def everybody_may_write_the_empty_file(shared: Path) -> tuple[Path, str]:
    (shared / "cache.bin").write_bytes(b"")
    return everybody_may_write_the_file(shared)


def everybody_may_write_the_directory(shared: Path) -> tuple[Path, str]:
    shared.chmod(0o757)
    problem = "everybody may write it"
    return shared / "cache.bin", described(
        problem, shared, os.geteuid(), 0o757, "chmod o-w"
    )


def everybody_may_write_a_directory_further_up(shared: Path) -> tuple[Path, str]:
    (shared / "a" / "b").mkdir(parents=True)
    _, reason = everybody_may_write_the_directory(shared)
    return shared / "a" / "b" / "cache.bin", reason


def everybody_may_write_the_directory_of_the_target(shared: Path) -> tuple[Path, str]:
    link = shared.parent / "link"
    link.symlink_to("shared/cache.bin")
    _, reason = everybody_may_write_the_directory(shared)
    return link, reason


def everybody_may_write_the_directory_of_a_link(shared: Path) -> tuple[Path, str]:
    (shared.parent / "private").mkdir()
    (shared / "link").symlink_to("../private")
    _, reason = everybody_may_write_the_directory(shared)
    return shared / "link" / "cache.bin", reason


def everybody_may_write_what_is_left_by_two_dots(shared: Path) -> tuple[Path, str]:
    (shared / "directory").mkdir()
    _, reason = everybody_may_write_the_directory(shared)
    return shared / "directory" / ".." / ".." / "cache.bin", reason


def a_foreign_group_may_write_the_file(shared: Path) -> tuple[Path, str]:
    path, gid = shared / "cache.bin", a_foreign_group()
    give(path, -1, gid)
    path.chmod(0o664)
    problem = f"its group {group(gid)} may write it, and this user is not a member"
    return path, described(problem, path, os.geteuid(), 0o664, "chmod g-w")


def a_foreign_group_may_write_the_directory(shared: Path) -> tuple[Path, str]:
    gid = a_foreign_group()
    give(shared, -1, gid)
    shared.chmod(0o2775)
    problem = f"its group {group(gid)} may write it, and this user is not a member"
    return shared / "cache.bin", described(
        problem, shared, os.geteuid(), 0o2775, "chmod g-w"
    )


def of_a_stranger(path: Path, mode: int) -> str:
    give(path, STRANGER, STRANGER)
    problem = f"it belongs to {user(STRANGER)}, and not to a group of this user"
    return described(problem, path, STRANGER, mode, f"chown -h {os.geteuid()}")


def a_stranger_owns_the_file(shared: Path) -> tuple[Path, str]:
    path = shared / "cache.bin"
    path.chmod(0o600)
    return path, of_a_stranger(path, 0o600)


def a_stranger_owns_the_directory(shared: Path) -> tuple[Path, str]:
    shared.chmod(0o755)
    return shared / "cache.bin", of_a_stranger(shared, 0o755)


def a_stranger_owns_a_directory_in_a_sticky_one(shared: Path) -> tuple[Path, str]:
    directory = shared / "directory"
    directory.mkdir(mode=0o700)
    shared.chmod(0o1777)
    return directory / "cache.bin", of_a_stranger(directory, 0o700)


def a_stranger_owns_a_link_in_a_sticky_directory(shared: Path) -> tuple[Path, str]:
    (shared.parent / "ours.bin").write_bytes(b"ours")
    link = shared / "link"
    link.symlink_to("../ours.bin")
    shared.chmod(0o1777)
    return link, of_a_stranger(link, 0o777)


def a_stranger_owns_a_dangling_link(shared: Path) -> tuple[Path, str]:
    link = shared / "link"
    link.symlink_to("../ours.bin")
    shared.chmod(0o1777)
    return link, of_a_stranger(link, 0o777)


def a_stranger_owns_a_link_on_the_way(shared: Path) -> tuple[Path, str]:
    (shared.parent / "private").mkdir()
    link = shared / "link"
    link.symlink_to(shared.parent / "private")
    shared.chmod(0o1777)
    return link / "cache.bin", of_a_stranger(link, 0o777)


@pytest.mark.parametrize(
    "arrange",
    [
        everybody_may_write_the_file,
        everybody_may_write_the_empty_file,
        everybody_may_write_the_directory,
        everybody_may_write_a_directory_further_up,
        everybody_may_write_the_directory_of_the_target,
        everybody_may_write_the_directory_of_a_link,
        everybody_may_write_what_is_left_by_two_dots,
        a_foreign_group_may_write_the_file,
        a_foreign_group_may_write_the_directory,
        a_stranger_owns_the_file,
        a_stranger_owns_the_directory,
        a_stranger_owns_a_directory_in_a_sticky_one,
        a_stranger_owns_a_link_in_a_sticky_directory,
        a_stranger_owns_a_dangling_link,
        a_stranger_owns_a_link_on_the_way,
    ],
)
@pytest.mark.parametrize("mended_by", ["remedy", "list"])
def test_refuses_and_says_what_mends_it(
    runtime: str,
    shared: Path,
    arrange: Callable[[Path], tuple[Path, str]],
    mended_by: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, reason = arrange(shared)
    assert refusal_of(runtime, path, shared.parent) == reason
    remedy = remedy_of(reason)
    if mended_by == "remedy":
        subprocess.run(remedy, check=True)
    else:
        monkeypatch.setenv("TORCHTRT_TRUSTED_PATHS", str(path))
    store = Store(runtime, path)
    contents = store.read()
    assert store.replace(b"ours", contents[1] if contents else None) is not None
    assert read(store) == b"ours"


def sticky_directory(shared: Path) -> Path:
    shared.chmod(0o1777)
    return shared / "cache.bin"


def link_of_ours_in_a_sticky_directory(shared: Path) -> Path:
    (shared / "link").symlink_to("cache.bin")
    shared.chmod(0o1777)
    return shared / "link"


def everything_of_our_group(shared: Path) -> Path:
    (shared / "link").symlink_to("cache.bin")
    for entry in (shared / "link", shared / "cache.bin", shared):
        give(entry, STRANGER, os.getegid())
    (shared / "cache.bin").chmod(0o664)
    shared.chmod(0o2775)
    return shared / "link"


def everything_of_a_further_group(shared: Path) -> Path:
    further = [g for g in os.getgroups() if g != os.getegid()]
    if not further:
        pytest.skip("this user has only one group")
    for entry in (shared / "cache.bin", shared):
        give(entry, STRANGER, further[0])
        entry.chmod(0o775)
    return shared / "cache.bin"


def files_that_others_may_read(shared: Path) -> Path:
    (shared / "cache.bin").chmod(0o755)
    shared.chmod(0o755)
    return shared / "cache.bin"


@pytest.mark.parametrize(
    "arrange",
    [
        sticky_directory,
        link_of_ours_in_a_sticky_directory,
        everything_of_our_group,
        everything_of_a_further_group,
        files_that_others_may_read,
    ],
)
def test_trusts_us_and_our_groups(
    runtime: str, shared: Path, arrange: Callable[[Path], Path]
) -> None:
    store = Store(runtime, arrange(shared))
    contents = store.read()
    assert contents is not None and contents[0] == b"theirs"
    assert store.replace(b"ours", contents[1]) is not None
    assert read(store) == b"ours"


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that other users can reach."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def import_what_root_may_reach() -> None:
    directory = Path(tempfile.mkdtemp())
    for runtime in ("cpp", "python"):
        store = Store(runtime, directory / runtime)
        write(store, b"ours")
        assert read(store) == b"ours"
        (directory / runtime).chmod(0o666)
        refusal_of(runtime, directory / runtime, directory)
    shutil.rmtree(directory)


def become_stranger() -> None:
    import_what_root_may_reach()
    os.setgroups([OTHER])
    os.setegid(STRANGER)
    os.seteuid(STRANGER)


@pytest.fixture(scope="module")
def stranger_child() -> Iterator[Child]:
    child = Child(become_stranger)
    yield child
    child.close()


@pytest.fixture
def as_stranger(stranger_child: Child) -> Run:
    """Runs a function as the user STRANGER in the groups STRANGER and OTHER."""
    try:
        stranger_child(os.getpid)
    except PermissionError as error:
        pytest.skip(f"only root can become another user: {error}")
    return stranger_child


def contents_at(runtime: str, path: Path) -> bytes:
    return read(Store(runtime, path))


def test_trusts_root_and_supplementary_groups(
    as_stranger: Run, runtime: str, public: Path
) -> None:
    path = public / "cache.bin"
    path.write_bytes(b"root's")
    assert as_stranger(contents_at, runtime, path) == b"root's"
    assert names_in(public) == {"cache.bin"}
    os.chown(path, 4711, OTHER)
    path.chmod(0o664)
    assert as_stranger(contents_at, runtime, path) == b"root's"
    os.chown(path, 4711, 4711)
    path.chmod(0o644)
    problem = "it belongs to 4711, and not to a group of this user"
    assert as_stranger(refusal_of, runtime, path, public) == described(
        problem, path, 4711, 0o644, f"chown -h {STRANGER}"
    )


def become_stranger_in_a_user_namespace() -> None:
    import_what_root_may_reach()
    os.setgroups([OTHER])
    os.setgid(STRANGER)
    os.setuid(STRANGER)
    # Only a process with one thread may enter a user namespace, and libraries have started threads.
    child = os.fork()
    if child != 0:
        os.waitpid(child, 0)
        os._exit(0)
    enter_user_namespace(0, 0)


@pytest.fixture(scope="module")
def namespace_child() -> Iterator[Child]:
    child = Child(become_stranger_in_a_user_namespace)
    yield child
    child.close()


@pytest.fixture
def in_user_namespace(namespace_child: Child) -> Run:
    """Runs a function as the user STRANGER, where all other users have the overflow id."""
    try:
        assert namespace_child(os.stat, "/").st_uid == overflow_uid()
    except OSError as error:
        pytest.skip(f"this user can't enter a user namespace as another one: {error}")
    return namespace_child


def overflow_uid() -> int:
    return int(Path("/proc/sys/kernel/overflowuid").read_text())


def save_and_load(runtime: str, path: Path) -> bytes:
    store = Store(runtime, path)
    contents = store.read()
    assert store.replace(b"ours", contents[1] if contents else None) is not None
    return read(store)


def test_a_user_without_a_number_is_not_root(
    in_user_namespace: Run, runtime: str, public: Path
) -> None:
    ours = public / "ours"
    roots = ours / "roots"
    roots.mkdir(parents=True)
    for directory in (public, ours):
        give(directory, STRANGER, STRANGER)
    public.chmod(0o1777)
    roots.chmod(0o755)
    for path in (ours / "cache.bin", roots / "cache.bin"):
        path.write_bytes(b"theirs")
        give(path, STRANGER, STRANGER)
        assert in_user_namespace(contents_at, runtime, path) == b"theirs"
    assert in_user_namespace(save_and_load, runtime, ours / "cache.bin") == b"ours"

    file, of_group, directory, link = (public / name for name in "abcd")
    file.write_bytes(b"theirs")
    give(file, 4711, 4711)
    of_group.write_bytes(b"theirs")
    give(of_group, 4711, OTHER)
    directory.mkdir()
    give(directory, 4711, 4711)
    link.symlink_to("ours/cache.bin")
    give(link, 4711, 4711)
    give(roots / "cache.bin", 0, 0)
    problem = f"it belongs to {user(overflow_uid())}, and not to a group of this user"
    for path, refused in (
        (file, file),
        (of_group, of_group),
        (directory / "cache.bin", directory),
        (link, link),
        (roots / "cache.bin", roots / "cache.bin"),
    ):
        mode = refused.lstat().st_mode & 0o7777
        assert in_user_namespace(refusal_of, runtime, path, public) == described(
            problem, refused, overflow_uid(), mode, "chown -h 0"
        )


def test_a_group_without_a_number_is_not_ours(
    in_user_namespace: Run, runtime: str, public: Path
) -> None:
    path = public / "cache.bin"
    path.write_bytes(b"theirs")
    for entry in (public, path):
        give(entry, STRANGER, OTHER)
    path.chmod(0o664)
    reason = in_user_namespace(refusal_of, runtime, path, public)
    assert "may write it, and this user is not a member" in reason


def test_others_may_read_the_cache_and_not_hold_its_lock(
    as_stranger: Run, runtime: str, public: Path
) -> None:
    path = public / "cache.bin"
    write(Store(runtime, path), b"root's")
    path.chmod(0o644)
    with FileLock(f"{path}.lock"):
        start = time.monotonic()
        assert as_stranger(contents_at, runtime, path) == b"root's"
        assert time.monotonic() - start < 9
    with pytest.raises(PermissionError):
        as_stranger(os.open, f"{path}.lock", os.O_RDONLY)


def test_a_lock_file_whose_time_we_may_not_set_is_taken(
    as_stranger: Run, runtime: str, public: Path
) -> None:
    path, lock = public / "cache.bin", public / "cache.bin.lock"
    path.write_bytes(b"root's")
    lock.touch(0o644)
    os.utime(lock, (LONG_AGO, LONG_AGO))
    assert as_stranger(contents_at, runtime, path) == b"root's"
    assert lock.stat().st_mtime == LONG_AGO


def trusted_paths(shared: Path) -> dict[str, str]:
    """What to list so that `shared`/cache.bin is trusted. The keys describe the cases."""
    link = shared.parent / "link"
    link.symlink_to("shared")
    return {
        "its directory": f"{shared}",
        "a separator at the end": f"{shared}/",
        "a directory further up": f"{shared.parent}",
        "the root": "/",
        "the file": f"{shared}/cache.bin",
        "a link to its directory": f"{link}",
        "dots": f"{shared}/../shared/.",
        "one of several": f":relative:{shared.parent}/missing/directory:{shared}:",
    }


def test_trusts_what_is_listed(
    runtime: str, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shared / "cache.bin"
    path.chmod(0o666)
    shared.chmod(0o777)
    (shared.parent / "link.bin").symlink_to("shared/cache.bin")
    for case, value in trusted_paths(shared).items():
        monkeypatch.setenv("TORCHTRT_TRUSTED_PATHS", value)
        for name in (path, shared.parent / "link.bin"):
            store = Store(runtime, name)
            contents = store.read()
            assert contents is not None, case
            assert store.replace(case.encode(), contents[1]) is not None, case
            assert read(store) == case.encode()


def test_a_first_file_may_be_listed(
    runtime: str, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.chmod(0o777)
    path = shared / "first.bin"
    monkeypatch.setenv("TORCHTRT_TRUSTED_PATHS", str(path))
    assert Store(runtime, path).replace(b"ours") is not None


@pytest.mark.parametrize(
    "value",
    [
        "",
        ":",
        "shared",
        "{shared}/cache.bi",
        "{shared}/cache.bin2",
        "{shared}/cache.bin/",
        "{shared}/cache",
        "{shared}2",
        "{top}/link.bin.lock",
        "{top}/loop",
    ],
)
def test_does_not_trust_what_is_not_listed(
    runtime: str, shared: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shared.parent)
    (shared.parent / "loop").symlink_to("loop")
    path = shared / "cache.bin"
    path.chmod(0o666)
    value = value.format(shared=shared, top=shared.parent)
    monkeypatch.setenv("TORCHTRT_TRUSTED_PATHS", value)
    assert "everybody may write it" in refusal_of(runtime, path, shared.parent)


def test_a_listed_link_does_not_list_where_it_lies(
    runtime: str, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shared.parent / "elsewhere").mkdir()
    (shared / "link").symlink_to("../elsewhere")
    (shared / "cache.bin").chmod(0o666)
    monkeypatch.setenv("TORCHTRT_TRUSTED_PATHS", str(shared / "link"))
    refusal_of(runtime, shared / "cache.bin", shared.parent)


def test_what_is_missing_is_missing(runtime: str, shared: Path) -> None:
    shared.chmod(0o1777)
    for name in ("missing.bin", "missing/cache.bin", "missing/../cache.bin"):
        assert Store(runtime, shared / name).read() is None
    assert Store(runtime, shared / "missing.bin").replace(b"ours") is not None
    with pytest.raises(RuntimeError, match="No such file or directory"):
        Store(runtime, shared / "missing" / "cache.bin").replace(b"ours")


def test_paths_lead_where_the_system_says(
    runtime: str, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shared / "deep").mkdir()
    (shared.parent / "link").symlink_to("shared/deep")
    (shared.parent / "absolute").symlink_to(f"{shared}//./")
    monkeypatch.chdir(shared)
    for path in (
        "cache.bin",
        "./cache.bin",
        "../link/../cache.bin",
        "../absolute/cache.bin",
        f"/../{shared}//cache.bin",
        f"{shared}/deep/./../cache.bin",
    ):
        assert Path(path).read_bytes() == b"theirs"
        assert read(Store(runtime, path)) == b"theirs"


@pytest.mark.parametrize(("links", "is_loop"), [(40, False), (41, True)])
def test_follows_as_many_links_as_the_system(
    runtime: str, shared: Path, links: int, is_loop: bool
) -> None:
    (shared / "0").symlink_to("cache.bin")
    for i in range(1, links):
        (shared / f"{i}").symlink_to(f"{i - 1}")
    path = shared / f"{links - 1}"
    store = Store(runtime, path)
    if not is_loop:
        assert read(store) == path.read_bytes() == b"theirs"
        return
    for error_of in (path.read_bytes, store.read, lambda: store.replace(b"ours")):
        with pytest.raises((OSError, RuntimeError), match=os.strerror(errno.ELOOP)):
            error_of()


Swap = Callable[[Path], None]


def by_a_file_that_everybody_may_write(path: Path) -> None:
    path.write_bytes(b"stranger's")
    path.chmod(0o666)


def by_a_file_of_a_stranger(path: Path) -> None:
    path.write_bytes(b"stranger's")
    path.chmod(0o644)
    give(path, STRANGER, STRANGER)


def by_a_strangers_link_to_a_file_of_ours(path: Path) -> None:
    (path.parent.parent / "elsewhere").write_bytes(b"stranger's")
    path.symlink_to("../elsewhere")
    give(path, STRANGER, STRANGER)


@pytest.mark.parametrize(
    "swap",
    [
        by_a_file_that_everybody_may_write,
        by_a_file_of_a_stranger,
        by_a_strangers_link_to_a_file_of_ours,
    ],
)
@pytest.mark.parametrize("is_first", [False, True])
def test_what_is_swapped_in_between_any_two_calls_is_not_used(
    store: Store, path: Path, swap: Swap, is_first: bool
) -> None:
    """This happens in a sticky directory, where everybody may create a file with an unused name."""
    elsewhere = path.parent.parent / "elsewhere"
    write(store, b"imports")
    path.unlink()
    swap(path)  # skips the test if it can't
    refused = set()
    for operation in ("load", "save", "compare"):
        for nth in range(1, 1000):
            path.unlink(missing_ok=True)
            contents = None
            if not is_first:
                path.write_bytes(b"ours")
                contents = store.read()
            left = nth

            def at_nth(call: str) -> int:
                nonlocal left
                left -= 1
                if left == 0:
                    path.unlink(missing_ok=True)
                    swap(path)
                return 0

            data = b"stranger's" if operation == "compare" else b"kernels"
            try:
                with observed(at_nth):
                    if operation == "load":
                        read_now = store.read()
                        assert read_now is None or read_now[0] == b"ours"
                    else:
                        replaced = store.replace(data, contents and contents[1])
                        assert replaced is not None and replaced.is_written
            except RuntimeError as error:
                refused.add(operation)
                reasons = ("can't be trusted", os.strerror(errno.ELOOP))
                assert any(reason in str(error) for reason in reasons), error
            if elsewhere.exists():
                assert elsewhere.read_bytes() == b"stranger's"
            assert not [n for n in names_in(path.parent) if n.endswith(".tmp")]
            if left > 0:
                break
            if not path.is_symlink() and path.read_bytes() == b"kernels":  # saved
                status = path.stat()
                assert (status.st_uid, status.st_mode & 0o002) == (os.geteuid(), 0)
        assert nth > 5
    assert refused >= ({"save", "compare"} if is_first else {"load", "save", "compare"})


def test_an_offer_that_others_could_have_written_is_not_read(path: Path) -> None:
    """With a hard link, others can give another of our files the name of an offer."""
    offer = Path(f"{path}.1-0123456789abcdef.merge")
    offer.write_bytes(b"kernels")
    offer.chmod(0o600)
    data = read_offer(str(offer))
    assert data is not None and bytes(data) == b"kernels"
    offer.chmod(0o606)
    assert read_offer(str(offer)) is None


@pytest.mark.parametrize(
    ("cache_mode", "lock_mode"),
    [
        (0o644, 0o640),
        (0o664, 0o660),
        (0o600, 0o600),
        (0o640, 0o640),
        (0o755, 0o750),
        (0o444, 0o640),
        (0o004, 0o600),
    ],
)
def test_lock_files_have_the_mode_of_the_cache_less_that_for_others(
    store: Store, path: Path, cache_mode: int, lock_mode: int
) -> None:
    path.write_bytes(b"theirs")
    path.chmod(cache_mode)
    with suppress(RuntimeError):  # the owner may be unable to read it
        store.read()
    with store.wait_for_turn():
        pass
    for name in ("cache.bin.lock", "cache.bin.merge.lock"):
        assert path.with_name(name).stat().st_mode & 0o7777 == lock_mode, name


@pytest.mark.parametrize(
    ("mask", "mode"), [(0o022, 0o640), (0o002, 0o660), (0, 0o660), (0o077, 0o600)]
)
def test_lock_files_of_a_first_cache_obey_the_umask(
    store: Store, path: Path, mask: int, mode: int
) -> None:
    before = os.umask(mask)
    try:
        with store.wait_for_turn():
            store.replace(b"ours")
    finally:
        os.umask(before)
    for name in ("cache.bin.lock", "cache.bin.merge.lock"):
        assert path.with_name(name).stat().st_mode & 0o7777 == mode, name


def test_lock_files_belong_to_whom_the_cache_belongs(store: Store, path: Path) -> None:
    path.write_bytes(b"theirs")
    give(path, STRANGER, os.getegid())
    path.chmod(0o664)
    store.read()
    with store.wait_for_turn():
        pass
    for name in ("cache.bin.lock", "cache.bin.merge.lock"):
        status = path.with_name(name).stat()
        assert (status.st_uid, status.st_gid) == (STRANGER, os.getegid()), name


def test_a_lock_file_that_is_there_keeps_its_mode(store: Store, path: Path) -> None:
    lock = Path(f"{path}.lock")
    lock.touch()
    lock.chmod(0o606)
    write(store, b"ours")
    read(store)
    assert lock.stat().st_mode & 0o7777 == 0o606


@pytest.mark.parametrize("operation", ["read", "write", "compare"])
def test_a_use_of_the_cache_sets_the_time_of_its_lock_file_alone(
    store: Store, path: Path, operation: str
) -> None:
    lock = Path(f"{path}.lock")
    generation = write(store, b"ours").generation
    os.utime(lock, (LONG_AGO, LONG_AGO))
    before = path.stat()
    start = time.time()
    if operation == "read":
        read(store)
    elif operation == "compare":
        assert store.replace(b"ours", generation) is not None
    else:
        assert store.replace(b"more", generation) is not None
    assert lock.stat().st_mtime > start - 2
    if operation != "write":
        assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_refusal_is_told_by_the_error_alone(
    store: Store, path: Path, log: Log
) -> None:
    path.write_bytes(b"theirs")
    path.chmod(0o666)
    with info():
        with pytest.raises(RuntimeError, match="can't be trusted"):
            store.read()
        with store.wait_for_turn(b"ours"):
            pass
    assert log.lines() == []
