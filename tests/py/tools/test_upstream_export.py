"""tools/upstream/export.py on small checkouts: its patches apply and do what they say."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tests.py.tools.upstream_checkouts import (
    AUTHOR,
    CACHE_PY,
    TEST_CACHE_PY,
    UPSTREAM,
    WITH_CPP_FILES,
    commit_files,
    environment,
    git,
    make_checkout,
    without,
)
from tools.upstream import file_lock_series

ROOT = Path(__file__).absolute().parents[3]
SCRIPT = ROOT / "tools" / "upstream" / "export.py"
TESTS = "tests/py/dynamo/runtime/test_000_runtime_cache.py"
CACHE = "py/torch_tensorrt/runtime/_runtime_cache.py"


def run_export(
    onto: Path, out: Path, *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), f"--onto={onto}", f"--out={out}", *options],
        env={**environment(out.parent), **variables},
        capture_output=True,
        encoding="utf-8",
    )


def export(onto: Path, out: Path, *options: str) -> str:
    done = run_export(onto, out, *options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def failure(onto: Path, out: Path, *options: str, **variables: str) -> str:
    """What a refused export says; it has written nothing."""
    before = sorted(out.iterdir()) if out.is_dir() else None
    done = run_export(onto, out, *options, **variables)
    assert done.returncode == 1
    assert done.stderr.startswith("export: ")
    assert before == (sorted(out.iterdir()) if out.is_dir() else None)
    return done.stderr


def patches(out: Path) -> list[Path]:
    return sorted(out.glob("*/000[1-9]-*.patch"))


def am(checkout: Path, out: Path) -> None:
    git(checkout, "am", "--quiet", *map(str, patches(out)))


def changed_files(checkout: Path, commits: str) -> set[str]:
    return set(git(checkout, "diff", "--name-only", commits).split())


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout", UPSTREAM)


@pytest.fixture
def checkout_with_cpp_files(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout", WITH_CPP_FILES)


def test_series_apply_and_hold_our_files(checkout: Path, out: Path) -> None:
    export(checkout, out)
    subjects = [
        path.read_text().split("Subject: ")[1].split("\n")[0] for path in patches(out)
    ]
    assert [subject.split("]")[1].split("(")[0].strip() for subject in subjects] == [
        "fix",
        "feat",
        "style",
        "docs",
    ]
    assert sorted(path.name for path in out.iterdir()) == ["autosave", "file-lock"]
    am(checkout, out)
    for path in file_lock_series.FILES:
        assert (checkout / path).read_bytes() == (ROOT / path).read_bytes()
    assert (
        git(checkout, "log", "-4", "--format=%an <%ae>").splitlines()
        == [f"{AUTHOR['NAME']} <{AUTHOR['EMAIL']}>"] * 4
    )
    assert git(checkout, "status", "--porcelain") == ""


def test_every_commit_says_what_why_and_how_tested(checkout: Path, out: Path) -> None:
    export(checkout, out)
    am(checkout, out)
    messages = git(checkout, "log", "-4", "--format=%B%x00").split("\0")[:4]
    for message in messages:
        assert all(word in message for word in ("What: ", "Why: ", "How tested: "))
        assert max(map(len, message.splitlines())) <= 76


def test_second_export_is_empty(checkout_with_cpp_files: Path, tmp_path: Path) -> None:
    export(checkout_with_cpp_files, tmp_path / "first", "--strict")
    am(checkout_with_cpp_files, tmp_path / "first")
    for options in ((), ("--strict",)):
        said = export(checkout_with_cpp_files, tmp_path / "second", *options)
        assert said == "file-lock: nothing to send\nautosave: nothing to send\n"
    assert not (tmp_path / "second").exists()


def test_a_checkout_without_cpp_files_leaves_the_hunk_out(
    checkout: Path, out: Path
) -> None:
    said = export(checkout, out)
    letter = (out / "file-lock" / "0000-cover-letter.patch").read_text()
    for text in (said, " ".join(letter.split())):
        assert "no C++ there loads or saves the cache file" in text
    am(checkout, out)
    assert not [
        name for name in changed_files(checkout, "HEAD~4") if "core/runtime" in name
    ]


def test_strict_refuses_what_would_be_left_out(checkout: Path, out: Path) -> None:
    assert "no C++ there loads or saves" in failure(checkout, out, "--strict")


def test_cover_letter(checkout: Path, out: Path) -> None:
    export(checkout, out)
    letter = (out / "file-lock" / "0000-cover-letter.patch").read_bytes().decode()
    assert (
        "Subject: [PATCH 0/3] feat(runtime): a file lock that C++ and Python share"
        in letter
    )
    assert "- [ ] My code is tidy\n- [ ] My tests pass\n" in letter
    assert "- feat(core/util): " in letter
    assert "How tested: " in letter
    assert "***" not in letter


def test_targets_and_entries(checkout: Path, out: Path) -> None:
    export(checkout, out)
    am(checkout, out)
    util = (checkout / "core/util/BUILD").read_text()
    library = util.split('name = "file_lock"')[1]
    assert library.startswith(
        ',\n    srcs = ["file_lock.cpp"] + select({\n'
        '        "@platforms//os:windows": ["file_lock_windows.cpp"],\n'
        '        "//conditions:default": ["file_lock_posix.cpp"],\n    }),\n'
    )
    assert '    deps = [":macros"],\n)\n' in library
    assert (
        '        "Exception.h",\n        "file_lock.h",\n        "macros.h",\n' in util
    )
    cmake = (checkout / "core/util/CMakeLists.txt").read_text()
    folder = '    "${CMAKE_CURRENT_SOURCE_DIR}/'
    platform = "file_lock_$<IF:$<PLATFORM_ID:Windows>,windows,posix>.cpp"
    assert f'Exception.cpp"\n{folder}file_lock.cpp"\n{folder}{platform}"\n)' in cmake
    assert f'Exception.h"\n{folder}file_lock.h"\n{folder}macros.h")' in cmake
    tests = (checkout / "tests/cpp/BUILD").read_text()
    assert (
        '        ":test_collections",\n        ":test_file_lock",\n'
        '        ":test_file_lock_posix",\n        ":test_multiple_' in tests
    )
    assert tests.startswith('load("@rules_cc//cc:defs.bzl", "cc_test")\n')
    helpers = (checkout / "tests/util/BUILD").read_text()
    assert helpers.count("cc_library(") == 2
    helpers = (checkout / "tests/util/processes/BUILD").read_text()
    assert helpers.count("cc_library(") == 2
    contents = (checkout / "docsrc/index.rst").read_text()
    assert (
        "   contributors/runtime\n   contributors/runtime_cache_lock\n   Indices"
        in contents
    )


def test_the_feature_alone_only_adds_lines(checkout: Path, out: Path) -> None:
    export(checkout, out)
    git(
        checkout, "am", "--quiet", str(next(iter(sorted(out.glob("file-lock/0001-*")))))
    )
    numbers = git(checkout, "diff", "--numstat", "HEAD~1").splitlines()
    assert {line.split()[1] for line in numbers} == {"0"}


MAIN = """
#include "core/runtime/TRTRuntimeConfig.h"

int main(int, char** argv) {
  torch_tensorrt::core::runtime::TRTRuntimeConfig saver{argv[1], "kernels"};
  saver.save_runtime_cache();
  torch_tensorrt::core::runtime::TRTRuntimeConfig loader{argv[1], ""};
  loader.ensure_initialized();
  return loader.cache == "kernels" ? 0 : 1;
}
"""


def test_load_and_save_of_upstream_take_the_lock(
    checkout_with_cpp_files: Path, out: Path, tmp_path: Path
) -> None:
    checkout = checkout_with_cpp_files
    export(checkout, out, "--strict")
    am(checkout, out)
    assert '"//core/util:file_lock",\n' in (checkout / "core/runtime/BUILD").read_text()
    (tmp_path / "main.cpp").write_text(MAIN)
    program = tmp_path / "program"
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-I.", "-pthread"]
    sources = [
        "core/runtime/TRTRuntimeConfig.cpp",
        "core/util/file_lock.cpp",
        "core/util/file_lock_posix.cpp",
    ]
    command = ["c++", *flags, *sources, str(tmp_path / "main.cpp"), "-o", str(program)]
    subprocess.run(command, cwd=checkout, check=True)
    path = tmp_path / "cache.bin"
    lock = FileLock(f"{path}.lock")
    with lock:
        process = subprocess.Popen([program, path])
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        assert not path.exists()
    assert process.wait(60) == 0
    assert path.read_text() == "kernels"


def test_a_file_of_ours_that_exists_with_other_contents_is_a_conflict(
    checkout: Path, out: Path
) -> None:
    commit_files(checkout, {"core/util/file_lock.h": "#pragma once\n"})
    said = failure(checkout, out)
    assert "core/util/file_lock.h exists in the checkout with other contents" in said
    assert not out.exists()


def test_a_file_of_ours_that_is_there_is_not_sent_again(
    checkout: Path, out: Path
) -> None:
    there = "tests/util/processes/run_program.h"
    commit_files(checkout, {there: (ROOT / there).read_text()})
    export(checkout, out)
    am(checkout, out)
    changed = changed_files(checkout, "HEAD~4")
    assert there not in changed
    assert "tests/util/processes/run_program.cpp" in changed


def test_half_an_autosave_is_a_conflict(checkout: Path, out: Path) -> None:
    other = CACHE_PY.replace(
        "def save(", "def _autosave_if_enabled(self):\n        pass\n\n    def save("
    )
    commit_files(checkout, {CACHE: other})
    assert f"{CACHE}: RuntimeCache has either of" in failure(checkout, out)


def test_another_class_of_the_name_of_a_test_is_a_conflict(
    checkout: Path, out: Path
) -> None:
    commit_files(
        checkout,
        {TESTS: f"{TEST_CACHE_PY}\n\nclass TestRuntimeCacheAutosave:\n    pass\n"},
    )
    assert f"{TESTS}: has another TestRuntimeCacheAutosave" in failure(checkout, out)


def run_pytest(checkout: Path) -> str:
    """The exported tests on the exported class, without this repository on the path."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-c",
            os.devnull,
            TESTS,
        ],
        env={**environment(checkout.parent), "PYTHONPATH": str(checkout / "py")},
        cwd=checkout,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("has_test_file", [True, False])
def test_exported_autosave_passes_its_tests(
    tmp_path: Path, out: Path, has_test_file: bool
) -> None:
    files = UPSTREAM if has_test_file else without(UPSTREAM, TESTS)
    checkout = make_checkout(tmp_path / "checkout", files)
    export(checkout, out)
    am(checkout, out)
    assert f"{5 if has_test_file else 4} passed" in run_pytest(checkout)
    if has_test_file:
        text = (checkout / TESTS).read_text()
        assert text.endswith('\n\n\nif __name__ == "__main__":\n    unittest.main()\n')
        assert text.startswith("import atexit\nimport gc\nimport os\n")


def run_python(checkout: Path, code: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**environment(checkout.parent), "PYTHONPATH": str(checkout / "py")},
        capture_output=True,
        encoding="utf-8",
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_exported_autosave_saves_at_exit(
    checkout: Path, out: Path, tmp_path: Path
) -> None:
    export(checkout, out)
    am(checkout, out)
    code = """
import copy, pickle, sys
from torch_tensorrt.runtime import RuntimeCache
cache = RuntimeCache(sys.argv[1], autosave_on_del=True)
copied = pickle.loads(pickle.dumps(cache))
assert copied.path == cache.path and copied.autosave_on_del
assert copied._atexit_token is not cache._atexit_token is not None
assert copy.deepcopy(cache)._atexit_token is not None
assert RuntimeCache(sys.argv[1])._atexit_token is None
sys.saved = cache  # nothing drops it before the end
"""
    run_python(checkout, code, str(tmp_path / "saved"))
    assert int((tmp_path / "saved").read_text()) > 0


def test_the_rest_of_the_module_is_kept(checkout: Path, out: Path) -> None:
    export(checkout, out)
    am(checkout, out)
    old_del = CACHE_PY[
        CACHE_PY.index("    def __del__") : CACHE_PY.index("    def __repr__")
    ]
    kept = CACHE_PY.replace(old_del, "").replace(
        "from typing import Any, Optional\n", ""
    )
    lines = iter((checkout / CACHE).read_text().splitlines())
    assert [line for line in kept.splitlines() if line not in lines] == []


@pytest.mark.parametrize(
    ("lacking", "note"),
    [
        ("core/util/BUILD", "core/util/BUILD: there is no such file"),
        ("core/util/CMakeLists.txt", "core/util/CMakeLists.txt: there is no such file"),
        ("tests/cpp/BUILD", "tests/cpp/BUILD: there is no such file"),
        ("docsrc/index.rst", "docsrc/index.rst: there is no such file"),
        (CACHE, f"{CACHE}: there is no such file"),
    ],
)
def test_what_the_checkout_lacks_is_left_out(
    tmp_path: Path, out: Path, lacking: str, note: str
) -> None:
    checkout = make_checkout(tmp_path / "checkout", without(WITH_CPP_FILES, lacking))
    if lacking != CACHE:  # then that series has nothing else, and is not sent
        assert note in failure(checkout, out, "--strict")
        assert note in export(checkout, out)
    else:
        assert "autosave: nothing to send\n" in export(checkout, out)
    am(checkout, out)
    assert not (checkout / lacking).exists()


def test_a_tree_without_tests_util_gets_one(tmp_path: Path, out: Path) -> None:
    checkout = make_checkout(
        tmp_path / "checkout", without(UPSTREAM, "tests/util/BUILD")
    )
    export(checkout, out)
    am(checkout, out)
    text = (checkout / "tests/util/BUILD").read_text()
    assert text.startswith('load("@rules_cc//cc:defs.bzl", "cc_library")\n\npackage(')


def test_the_checkout_is_left_as_it_was(checkout: Path, out: Path) -> None:
    (checkout / "core/util/macros.h").write_text("// being edited\n")
    (checkout / "core/util/file_lock.h").write_text("// not added\n")
    before = snapshot(checkout)
    assert "has changes that are not committed" in export(checkout, out)
    assert snapshot(checkout) == before
    git(checkout, "checkout", "--quiet", "--", ".")
    (checkout / "core/util/file_lock.h").unlink()
    am(checkout, out)


def test_output_is_the_same_each_time(checkout: Path, tmp_path: Path) -> None:
    export(checkout, tmp_path / "first")
    export(checkout, tmp_path / "second")
    assert snapshot(tmp_path / "first") == snapshot(tmp_path / "second")
    assert len(snapshot(tmp_path / "first")) == 6


def test_the_user_s_hooks_and_formats_do_not_interfere(
    checkout: Path, tmp_path: Path
) -> None:
    export(checkout, tmp_path / "plain")
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "pre-commit").write_text("#!/bin/sh\nexit 1\n")
    (hooks / "pre-commit").chmod(0o755)
    for key, value in {
        "core.hooksPath": str(hooks),
        "commit.gpgSign": "true",
        "format.signOff": "true",
        "format.attach": "true",
        "core.autocrlf": "true",
        "diff.noprefix": "true",
    }.items():
        git(checkout, "config", "--global", key, value)
        git(checkout, "config", key, value)
    export(checkout, tmp_path / "configured")
    assert snapshot(tmp_path / "plain") == snapshot(tmp_path / "configured")


def test_a_shallow_clone_and_a_detached_head_will_do(
    checkout: Path, tmp_path: Path
) -> None:
    commit_files(checkout, {"README.md": "more\n"})
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", checkout.as_uri(), str(shallow))
    git(shallow, "checkout", "--quiet", "--detach")
    export(shallow, tmp_path / "out")
    am(shallow, tmp_path / "out")
    assert (shallow / "core/util/file_lock.h").exists()


def test_a_linked_worktree_will_do(checkout: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    git(checkout, "worktree", "add", "--quiet", str(tree))
    export(tree, tmp_path / "out")
    am(tree, tmp_path / "out")


def test_refusals(checkout: Path, out: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    assert "is not a git checkout" in failure(plain, out)
    assert "there is no folder" in failure(tmp_path / "nowhere", out)
    assert "is not the top of its git checkout" in failure(checkout / "core", out)
    assert "is in the checkout" in failure(checkout, checkout / "patches")
    (plain / "note").touch()
    assert "is not empty" in failure(checkout, plain)
    assert "is not a folder" in failure(checkout, plain / "note")
    other = make_checkout(tmp_path / "other", {"README.md": ""})
    assert "not a checkout of pytorch/TensorRT" in failure(other, out)
    nobody = {"GIT_CONFIG_GLOBAL": os.devnull}
    assert "git does not know who you are" in failure(checkout, out, **nobody)
    assert "no `git` on the PATH" in failure(checkout, out, PATH=str(plain))
    empty = tmp_path / "empty"
    git(tmp_path, "init", "--quiet", str(empty))
    assert "has no commit yet" in failure(empty, out)


def test_an_empty_folder_for_the_output_will_do(checkout: Path, out: Path) -> None:
    out.mkdir()
    export(checkout, out)
    assert patches(out)
