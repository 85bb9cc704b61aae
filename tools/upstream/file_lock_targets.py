"""The targets of the file lock in upstream's BUILD files, and its entries in the lists there.

Each function takes a source and returns it changed, or the same where it has the change.
"""

from __future__ import annotations

from tools.upstream import starlark
from tools.upstream.edits import Parsed
from tools.upstream.errors import Missing

# By folder.
HELPERS = {
    "tests/util": [
        {
            "name": '"temporary_directory"',
            "hdrs": '["temporary_directory.h"]',
        },
    ],
    "tests/util/processes": [
        {
            "name": '"child_process"',
            "srcs": '["child_process.cpp"]',
            "hdrs": '["child_process.h"]',
            "linkopts": '["-pthread"]',
        },
        {
            "name": '"run_program"',
            "srcs": '["run_program.cpp"]',
            "hdrs": '["run_program.h"]',
        },
    ],
}
SOURCES = """["file_lock.cpp"] + select({
        "@platforms//os:windows": ["file_lock_windows.cpp"],
        "//conditions:default": ["file_lock_posix.cpp"],
    })"""
NOT_ON_WINDOWS = """select({
        "@platforms//os:windows": ["@platforms//:incompatible"],
        "//conditions:default": [],
    })"""


def _listed(*labels: str) -> str:
    if len(labels) == 1:
        return f'["{labels[0]}"]'
    lines = "".join(f'        "{label}",\n' for label in labels)
    return f"[\n{lines}    ]"


def add_library(source: str) -> str:
    parsed = Parsed(source)
    if starlark.target_with_source(parsed, "file_lock.cpp") is not None:
        return source
    macros = (
        "macros" if starlark.find_target(parsed, "macros") is not None else "prelude"
    )
    return starlark.add_target(
        source,
        "cc_library",
        {
            "name": '"file_lock"',
            "srcs": SOURCES,
            "hdrs": '["file_lock.h"]',
            "deps": _listed(f":{macros}"),
        },
    )


def header_lists(source: str) -> list[str]:
    """The targets that list the installed headers one by one."""
    parsed = Parsed(source)
    found = []
    for rule, call in starlark.calls(parsed):
        files = starlark.strings(starlark.argument(call, "srcs"))
        names = starlark.strings(starlark.argument(call, "name"))
        if rule != "cc_library" and "macros.h" in files and names:
            found.append(names[0])
    return found


def add_headers(source: str) -> str:
    for name in header_lists(source):
        source = starlark.add_to_list(source, name, "srcs", "file_lock.h")
    return source


def add_targets(targets: list[dict[str, str]], source: str) -> str:
    for attributes in targets:
        source = starlark.add_target(source, "cc_library", attributes)
    return source


def add_tests(source: str) -> str:
    parsed = Parsed(source)
    labels = [
        label for _, call in starlark.calls(parsed) for label in starlark.strings(call)
    ]
    gtest_main = next(
        (label for label in labels if label.endswith(":gtest_main")),
        "@googletest//:gtest_main",
    )
    gtest = gtest_main.removesuffix("_main")
    if starlark.target_with_source(parsed, "test_file_lock.cpp") is None:
        source = starlark.add_target(
            source,
            "cc_test",
            {
                "name": '"test_file_lock"',
                "srcs": '["test_file_lock.cpp"]',
                "deps": _listed(
                    "//core/util:file_lock",
                    "//tests/util:temporary_directory",
                    "//tests/util/processes:run_program",
                    gtest,
                ),
            },
        )
    if starlark.target_with_source(parsed, "test_file_lock_posix.cpp") is None:
        source = starlark.add_target(
            source,
            "cc_test",
            {
                "name": '"test_file_lock_posix"',
                "srcs": '["test_file_lock_posix.cpp"]',
                "target_compatible_with": NOT_ON_WINDOWS,
                "deps": _listed(
                    "//core/util:file_lock",
                    "//tests/util:temporary_directory",
                    "//tests/util/processes:child_process",
                    gtest_main,
                ),
            },
        )
    return source


def suites(source: str) -> list[str]:
    """The test suites that list their tests one by one."""
    parsed = Parsed(source)
    return [
        starlark.strings(starlark.argument(call, "name"))[0]
        for rule, call in starlark.calls(parsed)
        if rule == "test_suite"
        and starlark.literal_list(starlark.argument(call, "tests"))
    ]


def add_to_suites(source: str) -> str:
    for suite in suites(source):
        for test in (":test_file_lock", ":test_file_lock_posix"):
            if starlark.find_target(Parsed(source), test[1:]) is not None:
                source = starlark.add_to_list(source, suite, "tests", test)
    return source


def depend_on_lock(source: str, wired: list[str]) -> str:
    for path in wired:
        target = starlark.target_with_source(Parsed(source), path.rsplit("/", 1)[1])
        if target is None:
            raise Missing(f"no target there has {path} as a source")
        (name,) = starlark.strings(starlark.argument(target, "name"))
        source = starlark.add_to_list(source, name, "deps", "//core/util:file_lock")
    return source


def lists_with_lock(source: str) -> list[tuple[str, str]]:
    """The attributes where targets depend on the lock."""
    found = []
    for _, call in starlark.calls(Parsed(source)):
        if "//core/util:file_lock" in starlark.strings(starlark.argument(call, "deps")):
            found.append((starlark.strings(starlark.argument(call, "name"))[0], "deps"))
    return found
