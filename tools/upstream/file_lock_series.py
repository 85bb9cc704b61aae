"""Series 1: FileLock, its targets and tests, and its use where upstream's C++ loads and saves."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from tools.upstream import cmake, cpp_cache_io, file_lock_targets, starlark
from tools.upstream.errors import Missing, Problem
from tools.upstream.series import Series, Tree

LIBRARY = [
    "core/util/file_lock.cpp",
    "core/util/file_lock.h",
    "core/util/file_lock_posix.cpp",
    "core/util/file_lock_windows.cpp",
]
TESTS = [
    "tests/cpp/test_file_lock.cpp",
    "tests/cpp/test_file_lock_posix.cpp",
    "tests/util/processes/child_process.cpp",
    "tests/util/processes/child_process.h",
    "tests/util/processes/run_program.cpp",
    "tests/util/processes/run_program.h",
    "tests/util/temporary_directory.h",
]
PLATFORM_SOURCE = "file_lock_$<IF:$<PLATFORM_ID:Windows>,windows,posix>.cpp"
PAGE = "docsrc/contributors/runtime_cache_lock.rst"
FILES = [*LIBRARY, *TESTS, PAGE]

# What the lock includes of upstream's own.
REQUIRED = ["core/util/Exception.h", "core/util/macros.h"]

LOCK = (
    "core/util/file_lock.h: an advisory lock on a lock file that excludes, and is excluded by, "
    "Python's filelock.FileLock on the same path. Shared or exclusive, with a time-out, a "
    "TimedLockable for the guards of the standard library."
)
USE = (
    "holds it, shared, while the cache is loaded and, exclusively, while it is saved. Where the "
    "lock can't be had the file is left alone, with a warning."
)
WHY = (
    "Processes on the C++ runtime and on the Python runtime may share one runtime cache file. "
    "Python guards it by filelock; C++ had no lock that filelock respects, and a lock that one of "
    "the two does not know guards nothing."
)
HOW_TESTED = (
    "bazel test //tests/cpp:test_file_lock //tests/cpp:test_file_lock_posix, on real processes: "
    "modes, time-outs, fork, exec, signals, a lock file that is unlinked or replaced while "
    "somebody waits, system calls that fail."
)


def _add_to_cmake(source: str) -> str:
    source = cmake.add_beside(source, "Exception.cpp", "file_lock.cpp")
    source = cmake.add_beside(source, "file_lock.cpp", PLATFORM_SOURCE)
    if "Exception.h" in source:  # headers are not listed everywhere
        source = cmake.add_beside(source, "Exception.h", "file_lock.h")
    return source


def _add_page(source: str) -> str:
    """The entry of the page in the table of contents, after the other pages for contributors."""
    entry = PAGE.removeprefix("docsrc/").removesuffix(".rst")
    lines = source.splitlines(keepends=True)
    others = [
        i for i, line in enumerate(lines) if line.strip().startswith("contributors/")
    ]
    if any(lines[i].strip() == entry for i in others):
        return source
    if not others:
        raise Missing("it lists no page of contributors/")
    last = lines[others[-1]]
    lines.insert(others[-1] + 1, last.replace(last.strip(), entry))
    return "".join(lines)


def _wire(tree: Tree, left_out: list[str]) -> list[str]:
    """Locks around upstream's own load and save; the paths of the files that have them now."""
    what = "the lock around its load and save"
    wired = []
    failures: list[str] = []
    for path in tree.names("core/runtime"):
        if path.endswith(".cpp"):
            tree.change(path, what, cpp_cache_io.add_lock, failures)
            if "FileLock" in (tree.read(path) or ""):
                wired.append(path)
    if wired:
        tree.change(
            tree.build_file("core/runtime"),
            "the dependency of the runtime on the lock",
            lambda source: file_lock_targets.depend_on_lock(source, wired),
            failures,
        )
    left_out += failures
    if not wired and not failures:
        left_out.append(
            "core/runtime: no C++ there loads or saves the cache file (Python does, under "
            "filelock), so the lock around load and save is left out"
        )
    return wired


def _sort(tree: Tree, changed: Collection[str]) -> None:
    """What buildifier would do to the lists that the feature made longer."""
    lists: dict[str, Callable[[str], list[tuple[str, str]]]] = {
        "core/util": lambda source: [
            (name, "srcs") for name in file_lock_targets.header_lists(source)
        ],
        "core/runtime": file_lock_targets.lists_with_lock,
        "tests/cpp": lambda source: [
            (name, "tests") for name in file_lock_targets.suites(source)
        ],
    }
    for folder, find in lists.items():
        path = tree.build_file(folder)
        source = tree.read(path)
        if path in changed and source is not None:
            for target, attribute in find(source):
                source = starlark.sort_list(source, target, attribute)
            tree.write(path, source)


def _add_feature(ours: Callable[[str], str], tree: Tree, series: Series) -> None:
    left_out = series.left_out
    for path in (*LIBRARY, *TESTS):
        tree.add(path, ours(path))
    tree.change(
        tree.build_file("core/util"),
        "the target of the lock",
        lambda source: file_lock_targets.add_headers(
            file_lock_targets.add_library(source)
        ),
        left_out,
    )
    tree.change(
        "core/util/CMakeLists.txt", "the entry of the lock", _add_to_cmake, left_out
    )
    for folder, targets in file_lock_targets.HELPERS.items():
        helpers = tree.build_file(folder)
        if tree.read(helpers) is None:
            tree.write(
                helpers, 'package(default_visibility = ["//visibility:public"])\n'
            )
        tree.change(
            helpers,
            "the targets of the tests' helpers",
            partial(file_lock_targets.add_targets, targets),
            left_out,
        )
    tree.change(
        tree.build_file("tests/cpp"),
        "the targets of the lock's tests",
        lambda source: file_lock_targets.add_to_suites(
            file_lock_targets.add_tests(source)
        ),
        left_out,
    )
    wired = _wire(tree, left_out)
    tree.commit(
        series,
        "feat(core/util): add FileLock, a lock shared with Python's filelock",
        what=[LOCK, *([f"{' and '.join(wired)} {USE}"] if wired else [])],
        why=WHY,
        how_tested=HOW_TESTED,
    )


def build(ours: Callable[[str], str], tree: Tree) -> Series:
    """`ours` reads a file of this repository."""
    missing = [path for path in REQUIRED if tree.read(path) is None]
    if missing:
        raise Problem(f"not a checkout of pytorch/TensorRT: it has no {missing[0]}")
    subject = "feat(runtime): a file lock that C++ and Python share"
    series = Series("file-lock", subject, WHY, HOW_TESTED)

    _add_feature(ours, tree, series)
    if series.commits:
        _sort(tree, series.commits[0].files)
    tree.commit(
        series,
        "style(bazel): sort the lists that name the file lock",
        what=["The lists that the file lock was added to, in buildifier's order."],
        why="Apart from the feature, so that the diff of that has added lines only.",
        how_tested="buildifier -mode=check; no target gains or loses anything.",
    )
    tree.add(PAGE, ours(PAGE))
    tree.change(
        "docsrc/index.rst",
        "the page's entry in the contents",
        _add_page,
        series.left_out,
    )
    tree.commit(
        series,
        "docs(runtime): describe the lock of the runtime cache file",
        what=[
            "A page for contributors on the lock: the name of its file, who takes it when and how, "
            "and what other tools must do that share the cache file."
        ],
        why="The lock works only if all who touch the file keep to one convention.",
        how_tested="Read; its calls are those of the tests.",
    )
    return series
