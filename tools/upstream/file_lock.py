"""The series `file-lock`: FileLock, and its use where upstream's C++ loads and saves the cache."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from tools.upstream.edits import (
    add_target,
    add_to_list,
    add_to_toctree,
    find_definition,
    insert,
    insert_in_function,
    replace_lines,
)
from tools.upstream.tree import Missing, Series, Tree, prose

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
PAGE = "docsrc/contributors/runtime_cache_lock.rst"
FILES = [*LIBRARY, *TESTS, PAGE]

CONFIG = "core/runtime/TRTRuntimeConfig.cpp"
SETTINGS = "core/runtime/RuntimeSettings.h"
PYTHON_TESTS = "tests/py/dynamo/runtime/test_000_runtime_cache.py"

WHY = prose("""
    Processes on the C++ runtime and on the Python runtime may share one runtime cache file.
    Python guards it with filelock. C++ does not, so it may read a file that Python is writing, or
    replace one that Python is reading. FileLock takes the same lock as filelock's FileLock, so
    each excludes the other.
    """)
TESTED = prose("""
    `bazel test //tests/cpp:test_file_lock //tests/cpp:test_file_lock_posix` needs no GPU and runs
    real processes: modes, time-outs, fork, exec, signals, a lock file that is unlinked or
    replaced while somebody waits, system calls that fail. The tests added to
    test_000_runtime_cache.py need a GPU with TensorRT-RTX. They have not been run on one.
    """)
NO_MERGE = prose("""
    Merging. The lock keeps the file whole. Of two processes that load, compile and save, the
    later one still replaces what the earlier one saved.
    """)
READ_ONLY = prose("""
    Reading without a lock. A cache whose lock can't be taken is not read, with a warning, as in
    Python. That includes a cache in a directory where nobody may create the lock file.
    """)

ALL_THERE = "Nothing: this commit has the lock already."
NO_CACHE = "Nothing: no C++ file of this commit loads or saves a runtime cache file."
HOLDER_ONLY = prose("""
    Nothing: the lock would have no user. In this commit the C++ RuntimeCacheHandle only
    serializes and deserializes. Its comment in RuntimeSettings.h says that file I/O lives in
    Python, which does it under filelock, since pull request 4330. Pull request 4237, a file lock
    in C++, was closed unmerged. A load and a save on the handle would serve C++ processes without
    Python. But they would reverse that decision, handle the file in two languages again, and
    need a lock library of four files. The maintainers should decide that in an issue first.
    """)

LIBRARY_TARGET = """\
cc_library(
    name = "file_lock",
    srcs = ["file_lock.cpp"] + select({
        "@platforms//os:windows": ["file_lock_windows.cpp"],
        "//conditions:default": ["file_lock_posix.cpp"],
    }),
    hdrs = ["file_lock.h"],
    deps = [":macros"],
    alwayslink = True,
)
"""
NOT_ON_WINDOWS = """\
    target_compatible_with = select({
        "@platforms//os:windows": ["@platforms//:incompatible"],
        "//conditions:default": [],
    }),
"""
TEST_TARGET = """\
cc_test(
    name = "test_file_lock",
    srcs = ["test_file_lock.cpp"],
    deps = [
        "//core/util:file_lock",
        "//tests/util:temporary_directory",
        "//tests/util/processes:run_program",
        "@googletest//:gtest",
    ],
)
"""
POSIX_TEST_TARGET = f"""\
cc_test(
    name = "test_file_lock_posix",
    srcs = ["test_file_lock_posix.cpp"],
{NOT_ON_WINDOWS}\
    deps = [
        "//core/util:file_lock",
        "//tests/util:temporary_directory",
        "//tests/util/processes:child_process",
        "@googletest//:gtest_main",
    ],
)
"""
TEMPORARY_DIRECTORY_TARGET = """\
cc_library(
    name = "temporary_directory",
    hdrs = ["temporary_directory.h"],
)
"""
PROCESSES_BUILD = f"""\
load("@rules_cc//cc:defs.bzl", "cc_library")

package(default_visibility = ["//visibility:public"])

cc_library(
    name = "child_process",
    srcs = ["child_process.cpp"],
    hdrs = ["child_process.h"],
    linkopts = ["-pthread"],
{NOT_ON_WINDOWS}\
)

cc_library(
    name = "run_program",
    srcs = ["run_program.cpp"],
    hdrs = ["run_program.h"],
)
"""

CMAKE_FILE = '    "${CMAKE_CURRENT_SOURCE_DIR}/'
CMAKE_SOURCES = (
    f'{CMAKE_FILE}file_lock.cpp"\n'
    f'{CMAKE_FILE}file_lock_$<IF:$<PLATFORM_ID:Windows>,windows,posix>.cpp"\n'
)
CMAKE_HEADER = f'{CMAKE_FILE}file_lock.h"\n'

TAKE_LOCK = """\
  util::FileLock lock(util::FileLock::lock_path(path), util::FileLock::Mode::%s);
  TORCHTRT_CHECK(lock.try_lock_for(), "Another process holds " << lock.path());
"""
RELEASE_LOCK = "  lock.unlock();\n"

CONCURRENCY_DOCSTRING = (
    '    """Tests that both runtimes take the lock of the cache file."""\n'
)
CONCURRENCY_TESTS = '''\
    def _skip_without(self, use_python_runtime):
        if not use_python_runtime and not ENABLED_FEATURES.torch_tensorrt_runtime:
            self.skipTest("C++ runtime is not available")

    @parameterized.expand(_RUNTIMES)
    def test_filelock_works(self, _name, use_python_runtime):
        """A save leaves a file that is not empty, and frees its lock."""
        self._skip_without(use_python_runtime)
        _start_and_save(use_python_runtime, self.cache_path)
        with FileLock(self.cache_path + ".lock", timeout=0):
            self.assertGreater(os.path.getsize(self.cache_path), 0)

    @parameterized.expand(_RUNTIMES)
    def test_sequential_save_load(self, _name, use_python_runtime):
        """A module loads what another one saved, and saves it again."""
        self._skip_without(use_python_runtime)
        for _ in range(2):
            _start_and_save(use_python_runtime, self.cache_path)
            self._check_file()

    def test_python_lock_blocks_cpp_save(self):
        """The C++ runtime writes nothing while a process holds Python's lock."""
        self._skip_without(use_python_runtime=False)
        compiled = _start(False, self.cache_path)
        holder = subprocess.Popen(
            [sys.executable, "-c", _HOLD_LOCK, self.cache_path],
            stdout=subprocess.PIPE,
            text=True,
        )
        with holder:
            self.assertEqual(holder.stdout.readline(), "locked\\n")
            del compiled
            gc.collect()
            self.assertEqual(holder.stdout.readline(), "not written\\n")
        self._check_file()

    def test_filelock_cross_runtime_parallel(self):
        """Processes on both runtimes load and save one file, which stays whole."""
        self._skip_without(use_python_runtime=False)
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(
                target=_start_and_save, args=(use_python_runtime, self.cache_path)
            )
            for _, use_python_runtime in 2 * _RUNTIMES
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            self.assertEqual(process.exitcode, 0)
        self._check_file()

    def _check_file(self):
        """TensorRT-RTX accepts the file: it is not empty, and not torn."""
        compiled = _start(True, os.path.join(self.cache_dir, "other.bin"))
        with open(self.cache_path, "rb") as f:
            data = f.read()
        cache = _find_python_trt_module(compiled).runtime_cache
        self.assertTrue(cache.deserialize(data))
'''
CONCURRENCY_HELPERS = '''\
# A process runs this to hold the lock of the cache file argv[1] for a while.
_HOLD_LOCK = """
import os, sys, time
from filelock import FileLock

with FileLock(sys.argv[1] + ".lock"):
    print("locked", flush=True)
    time.sleep(2)
    print("written" if os.path.exists(sys.argv[1]) else "not written", flush=True)
"""


def _start(use_python_runtime, cache_path):
    """Compiles a model with a runtime cache and runs it."""
    model, inputs = _fresh_conv_model_and_inputs()
    compiled = _compile(
        model,
        inputs,
        use_python_runtime=use_python_runtime,
        runtime_cache_path=cache_path,
    )
    compiled(*inputs)
    return compiled


def _start_and_save(use_python_runtime, cache_path):
    _start(use_python_runtime, cache_path)
    gc.collect()  # the module, which saves its cache


'''


def _in_buildifier_style(source: str) -> str:
    """Fixes what buildifier objects to in the two upstream files that a commit adds to."""
    for pattern, replacement in [
        (r"\)\npackage\(", ")\n\npackage("),
        (r'("\w+")\n    }', r"\1,\n    }"),
        (r"\n{3,}", "\n\n"),
        (r"(    visibility = .*\n)(    prefix = .*\n)", r"\2\1"),
    ]:
        source = re.sub(pattern, replacement, source)
    return re.sub(r"(?<=select\({\n)( {8}\".*\n)+(?=    }\))", _sorted, source)


def _sorted(entries: re.Match[str]) -> str:
    lines = entries.group().splitlines(keepends=True)
    return "".join(sorted(lines, key=lambda line: ("//conditions" in line, line)))


def _add_library(source: str) -> str:
    source = add_target(source, "exception", "file_lock", LIBRARY_TARGET)
    return add_to_list(source, "include_files", "srcs", "file_lock.h")


def _add_to_cmake(source: str) -> str:
    if CMAKE_HEADER not in source:
        header = f'{CMAKE_FILE}build_info.h"'
        source = insert(source, header, CMAKE_HEADER, after=True)
    if CMAKE_SOURCES not in source:
        exception = f'{CMAKE_FILE}Exception.cpp"'
        source = insert(source, exception, CMAKE_SOURCES, after=True)
    return source


def _add_tests(source: str) -> str:
    last = "test_serialization"
    source = add_target(source, last, "test_file_lock_posix", POSIX_TEST_TARGET)
    source = add_target(source, last, "test_file_lock", TEST_TARGET)
    for suite in ("api_tests", "aarch64_api_tests"):
        for test in (":test_file_lock", ":test_file_lock_posix"):
            source = add_to_list(source, suite, "tests", test)
    return source


def _take_lock(source: str) -> str:
    if "FileLock" in source:
        return source
    source = insert_in_function(
        source,
        "load_runtime_cache",
        [
            ("  std::ifstream ", TAKE_LOCK % "kShared", False),
            ("  if (buf.empty())", RELEASE_LOCK, False),
        ],
    )
    source = insert_in_function(
        source,
        "save_runtime_cache_impl",
        [
            ("  std::filesystem::path tmp_path", TAKE_LOCK % "kExclusive", False),
            ("  std::filesystem::rename(", RELEASE_LOCK, True),
        ],
    )
    include = '#include "core/util/file_lock.h"\n'
    return insert(source, '#include "core/util/prelude.h"', include)


def _test_lock(source: str) -> str:
    """Replaces the tests of the lock for Python by tests for both runtimes."""
    if "def _start_and_save(" in source:
        return source
    source = insert(source, "import os", "import multiprocessing\n")
    source = insert(source, "import tempfile", "import subprocess\nimport sys\n")
    parameterized = "from parameterized import parameterized"
    source = insert(source, parameterized, "from filelock import FileLock\n")
    module = ast.parse(source)
    for helper in (
        "_compile",
        "_find_python_trt_module",
        "_fresh_conv_model_and_inputs",
    ):
        find_definition(module, helper, ast.FunctionDef)
    owner = find_definition(module, "TestRuntimeCacheConcurrency", ast.ClassDef)
    names = [getattr(statement, "name", "") for statement in owner.body]
    expected = ["setUp", "tearDown", "test_filelock_works", "test_sequential_save_load"]
    if names != ["", *expected]:
        raise Missing(f"{owner.name} must have just a docstring, {', '.join(expected)}")
    docstring, first_test, last_test = owner.body[0], owner.body[3], owner.body[-1]
    assert docstring.end_lineno is not None and last_test.end_lineno is not None
    start = owner.decorator_list[0].lineno if owner.decorator_list else owner.lineno
    return replace_lines(
        source,
        [
            (start, start, CONCURRENCY_HELPERS),
            (docstring.lineno, docstring.end_lineno + 1, CONCURRENCY_DOCSTRING),
            (first_test.lineno, last_test.end_lineno + 1, CONCURRENCY_TESTS),
        ],
    )


def _add_commits(ours: Callable[[str], str], tree: Tree, series: Series) -> None:
    tree.edit("core/util/BUILD", _in_buildifier_style)
    tree.edit("tests/cpp/BUILD", _in_buildifier_style)
    tree.commit(
        series,
        "style(bazel): format two BUILD files with buildifier",
        "The next commit adds to them. No target changes.",
    )
    for path in (*LIBRARY, *TESTS):
        tree.add(path, ours(path))
    tree.edit("core/util/BUILD", _add_library)
    tree.edit("core/util/CMakeLists.txt", _add_to_cmake)
    tree.edit(
        "tests/util/BUILD",
        lambda source: add_target(
            source, "util", "temporary_directory", TEMPORARY_DIRECTORY_TARGET
        ),
    )
    tree.add("tests/util/processes/BUILD", PROCESSES_BUILD)
    tree.edit("tests/cpp/BUILD", _add_tests)
    tree.commit(
        series,
        "feat(core/util): add FileLock, a lock shared with Python's filelock",
        "An advisory lock on a lock file, shared or exclusive, with a time-out. It excludes, and "
        "is excluded by, Python's filelock.FileLock on the same path: flock(2) on Linux and macOS, "
        "LockFileEx on Windows. It meets the standard's TimedLockable.",
    )
    tree.edit(CONFIG, _take_lock)
    tree.edit(
        "core/runtime/BUILD",
        lambda source: add_to_list(source, "runtime", "deps", "//core/util:file_lock"),
    )
    tree.edit(PYTHON_TESTS, _test_lock)
    tree.commit(
        series,
        "feat(runtime): hold the lock of the runtime cache file in C++ too",
        "The lock is shared while the file is read, exclusive while it is written, and held only "
        "for this disk work. If another process keeps the lock for 10 s, or it can't be taken, the "
        "file is left alone and the warning about a failed load or save says why.",
    )
    tree.add(PAGE, ours(PAGE))
    entry = PAGE.removeprefix("docsrc/").removesuffix(".rst")
    tree.edit(
        "docsrc/contributing.rst",
        lambda source: add_to_toctree(source, "Feature Design", entry),
    )
    tree.commit(
        series,
        "docs(runtime): describe the lock of the runtime cache file",
        "For contributors, and for other programs that share the file.",
    )


def build(ours: Callable[[str], str], tree: Tree) -> Series:
    """`ours` reads a file of this repository."""
    subject = "feat(runtime): a file lock that C++ and Python share"
    series = Series("file-lock", subject, WHY, TESTED, "- New feature")
    if "load_runtime_cache(" not in (tree.find(CONFIG) or ""):
        is_holder = "class RuntimeCacheHandle" in (tree.find(SETTINGS) or "")
        series.not_sent = [HOLDER_ONLY if is_holder else NO_CACHE]
        return series
    try:
        _add_commits(ours, tree, series)
    except Missing as missing:
        series.commits = []
        series.not_sent = [f"Nothing: {missing}."]
        return series
    series.not_sent = [NO_MERGE, READ_ONLY] if series.commits else [ALL_THERE]
    return series
