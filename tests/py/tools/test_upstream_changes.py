"""The single changes that an export makes to files of upstream's, in layouts of many kinds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.py.tools.upstream_checkouts import CACHE_PY, CONFIG_CPP
from tools.upstream import cmake, cpp_cache_io, excerpt, starlark
from tools.upstream.edits import Edit, Parsed, apply
from tools.upstream.errors import Missing, Problem
from tools.upstream.python_module import Import, add_imports
from tools.upstream.runtime_cache_class import anchor_autosave


def test_edits_keep_windows_line_ends() -> None:
    assert apply("a\r\nc\r\n", [Edit(3, 3, "b\n")]) == "a\r\nb\r\nc\r\n"


def test_edits_at_one_place_keep_their_order() -> None:
    assert apply("ad", [Edit(1, 1, "b"), Edit(1, 1, "c")]) == "abcd"


def test_edits_that_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        apply("abc", [Edit(0, 2, ""), Edit(1, 3, "")])


def test_positions_count_characters_not_bytes() -> None:
    parsed = Parsed('"é"; x = 1\n')
    assert parsed.text(parsed.module.body[1]) == "x = 1"


def listed(items: str) -> str:
    return f'cc_test(\n    name = "t",\n    deps = {items},\n)\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('["b"]', '[\n        "b",\n        "new",\n    ]'),
        ('["a", "b"]', '[\n        "a",\n        "b",\n        "new",\n    ]'),
        ('[\n        "b",\n    ]', '[\n        "b",\n        "new",\n    ]'),
        ('[\n        "b"\n    ]', '[\n        "b",\n        "new",\n    ]'),
        (
            '[\n        "b",  # why\n    ]',
            '[\n        "b",  # why\n        "new",\n    ]',
        ),
        ('[\n        "b",\n    ] + X', '[\n        "b",\n        "new",\n    ] + X'),
        ('X + [\n        "b",\n    ]', 'X + [\n        "b",\n        "new",\n    ]'),
        ('[\n        "new",\n    ]', '[\n        "new",\n    ]'),
    ],
)
def test_add_to_list(before: str, after: str) -> None:
    assert starlark.add_to_list(listed(before), "t", "deps", "new") == listed(after)


@pytest.mark.parametrize("deps", ["glob([])", "[]", '[\n        "b"]'])
def test_add_to_list_refuses_what_it_does_not_know(deps: str) -> None:
    with pytest.raises(Missing):
        starlark.add_to_list(listed(deps), "t", "deps", "new")


def test_sort_list_is_buildifier_s_order() -> None:
    unsorted = listed('["@b", "//b:a", "//a", ":z", "b.h", "a_b.h", "a.h", "B.h"]')
    expected = listed('["B.h", "a.h", "a_b.h", "b.h", ":z", "//a", "//b:a", "@b"]')
    assert starlark.sort_list(unsorted, "t", "deps") == expected


@pytest.mark.parametrize(
    "deps", ['[\n        "b",  # first\n        "a",\n    ]', '["b", X, "a"]']
)
def test_sort_list_keeps_what_it_does_not_know(deps: str) -> None:
    assert starlark.sort_list(listed(deps), "t", "deps") == listed(deps)


PUBLIC = 'package(default_visibility = ["//visibility:public"])\n'
TARGET = 'cc_library(\n    name = "x",\n)\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", 'load("@rules_cc//cc:defs.bzl", "cc_library")\n'),
        ('load(":own.bzl", "x")\n', 'load(":own.bzl", "x")\n{}'),
        (
            'load("@rules_cc//cc:defs.bzl", "cc_test")\n',
            'load("@rules_cc//cc:defs.bzl", "cc_library", "cc_test")\n',
        ),
        ('load("//:own.bzl", "cc_library")\n', 'load("//:own.bzl", "cc_library")\n'),
    ],
)
def test_add_target_loads_its_rule(before: str, after: str) -> None:
    after = after.replace("{}", 'load("@rules_cc//cc:defs.bzl", "cc_library")\n')
    changed = starlark.add_target(before + PUBLIC, "cc_library", {"name": '"x"'})
    assert changed == after + ("\n" if not before else "") + PUBLIC + "\n" + TARGET
    assert starlark.add_target(changed, "cc_library", {"name": '"x"'}) == changed


def test_add_target_uses_a_native_rule_where_the_file_does() -> None:
    before = PUBLIC + 'cc_library(name = "y")'
    changed = starlark.add_target(before, "cc_library", {"name": '"x"'})
    assert changed == before + "\n\n" + TARGET


def test_add_target_is_visible_where_the_package_does_not_say_so() -> None:
    changed = starlark.add_target("", "cc_library", {"name": '"x"', "deps": "[]"})
    assert changed.endswith(
        '    visibility = ["//visibility:public"],\n    deps = [],\n)\n'
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("set(S\n  Exception.cpp\n)\n", "set(S\n  Exception.cpp\n  file_lock.cpp\n)\n"),
        (
            'set(S\n  "d/Exception.cpp")\n',
            'set(S\n  "d/Exception.cpp"\n  "d/file_lock.cpp")\n',
        ),
        ("set(S\n  file_lock.cpp\n)\n", "set(S\n  file_lock.cpp\n)\n"),
        (
            "set(S\n  Exception.cpp\n)\n# file_lock.cpp\n",
            "set(S\n  Exception.cpp\n  file_lock.cpp\n)\n# file_lock.cpp\n",
        ),
    ],
)
def test_cmake_entry(before: str, after: str) -> None:
    assert cmake.add_beside(before, "Exception.cpp", "file_lock.cpp") == after


@pytest.mark.parametrize(
    "source", ["file(GLOB S *.cpp)\n", "# Exception.cpp\n", "set(S MyException.cpp)\n"]
)
def test_cmake_without_the_neighbour(source: str) -> None:
    with pytest.raises(Missing):
        cmake.add_beside(source, "Exception.cpp", "file_lock.cpp")


def test_lock_is_taken_before_the_block_that_has_all_the_file_work() -> None:
    changed = cpp_cache_io.add_lock(CONFIG_CPP)
    load, save = changed.split("lock_runtime_cache(")[2:]
    assert load.startswith(
        "path, util::FileLock::Mode::kShared);\n  if (!file_lock) {\n    return false;"
    )
    assert save.startswith(
        "runtime_cache_path, util::FileLock::Mode::kExclusive);\n    if (!file_lock) {"
    )
    assert save.split("}\n", 1)[1].startswith("    {\n      std::ofstream file")
    assert cpp_cache_io.add_lock(changed) == changed


def test_nothing_to_lock_changes_nothing() -> None:
    source = CONFIG_CPP.replace("fstream", "other")
    assert cpp_cache_io.add_lock(source) == source
    renamed = CONFIG_CPP.replace("_runtime_cache(", "_timing(")
    assert cpp_cache_io.add_lock(renamed) == renamed


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("bool load", "size_t load", "returns size_t"),
        (
            "namespace runtime {",
            "namespace other {",
            "no line that opens the namespace runtime",
        ),
        (
            "path, std::string& cache",
            "name, std::string& cache",
            "no parameter or member",
        ),
        (
            "  std::ifstream file(path,",
            "  cache.clear(); std::ifstream file(path,",
            "more than one statement on a line",
        ),
    ],
)
def test_load_that_is_not_recognised(old: str, new: str, says: str) -> None:
    assert old in CONFIG_CPP
    with pytest.raises(Missing, match=says):
        cpp_cache_io.add_lock(CONFIG_CPP.replace(old, new))


ATEXIT = Import("atexit", "", "atexit")
PARTIAL = Import("functools", "partial", "partial")
PYTEST = Import("pytest", "", "pytest")


@pytest.mark.parametrize(
    ("before", "new", "after"),
    [
        ("", ATEXIT, "import atexit\n\n"),
        ('"""Doc."""\n', ATEXIT, '"""Doc."""\n\nimport atexit\n'),
        ("import os\n", ATEXIT, "import atexit\nimport os\n"),
        (
            "import abc\nfrom os import path\n",
            ATEXIT,
            "import abc\nimport atexit\nfrom os import path\n",
        ),
        ("import os\n", PARTIAL, "import os\nfrom functools import partial\n"),
        ("import torch\n", ATEXIT, "import atexit\n\nimport torch\n"),
        ("import os\n", PYTEST, "import os\n\nimport pytest\n"),
        (
            "from __future__ import annotations\n",
            ATEXIT,
            "from __future__ import annotations\n\nimport atexit\n",
        ),
        (
            "from functools import cache\n",
            PARTIAL,
            "from functools import cache, partial\n",
        ),
        (
            "from functools import (\n    cache,\n)\n",
            PARTIAL,
            "from functools import cache, partial\n",
        ),
        ("from functools import partial\n", PARTIAL, "from functools import partial\n"),
        ("import atexit as atexit\n", ATEXIT, "import atexit as atexit\n"),
    ],
)
def test_add_import(before: str, new: Import, after: str) -> None:
    assert apply(before, add_imports(Parsed(before), [new])) == after


def test_a_long_import_is_wrapped() -> None:
    names = [f"a_rather_long_name_{i}" for i in range(5)]
    before = f"from m import {', '.join(names[:4])}\n"
    after = apply(
        before, add_imports(Parsed(before), [Import("m", names[4], names[4])])
    )
    assert (
        after
        == "from m import (\n" + "".join(f"    {name},\n" for name in names) + ")\n"
    )


def without_part(part: str) -> Callable[[str], str]:
    def change(source: str) -> str:
        assert part in source
        return source.replace(part, "")

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda source: source.replace("class RuntimeCache:", "class Cache:"),
            "no class",
        ),
        (lambda source: source.replace("__del__", "close"), "has no __del__"),
        (lambda source: source.replace("__init__", "make"), "has no __init__"),
        (
            without_part("        self.autosave_on_del = autosave_on_del\n"),
            "sets no autosave_on_del",
        ),
        (lambda source: source.replace("def save(", "def write("), "has no save"),
        (without_part("logger = logging.getLogger(__name__)\n"), "no logger"),
        (
            lambda source: source.replace("__repr__", "__reduce__"),
            "has a __reduce__ of its own",
        ),
    ],
)
def test_a_class_that_the_autosave_was_not_written_for(
    change: Callable[[str], str], says: str
) -> None:
    with pytest.raises(Missing, match=says):
        anchor_autosave(change(CACHE_PY))


def test_the_autosave_is_added_once() -> None:
    changed = anchor_autosave(CACHE_PY)
    assert anchor_autosave(changed) == changed


def test_init_begins_with_the_token_after_its_docstring() -> None:
    header = "        self._handle: Any = Handle(path)"
    changed = anchor_autosave(CACHE_PY.replace(header, f'        """Doc."""\n{header}'))
    assert '        """Doc."""\n        # First, so that' in changed


MODULE = '''\
"""Doc."""

import gc
import sys
from pathlib import Path

from tests.util.device import installed

LIMIT = len(sys.path)


# What it needs.
def needed(path: Path) -> int:
    return LIMIT


def other() -> None:
    installed()
    gc.collect()


class TestIt:
    def test(self, needed: int) -> None:
        gone = needed
        assert gone
'''


def test_excerpt_has_what_the_class_needs_and_no_more() -> None:
    part = excerpt.excerpt(MODULE, "TestIt")
    text = excerpt.new_module("New.", part)
    assert text.startswith(
        '"""New."""\n\nimport sys\nfrom pathlib import Path\n\n\nLIMIT = '
    )
    assert "# What it needs.\ndef needed" in text
    assert not {"gc", "installed", "other"} & set(text.replace("(", " ").split())
    compile(text, "excerpt", "exec")


def test_excerpt_refuses_what_upstream_has_not() -> None:
    with pytest.raises(Problem, match=r"tests\.util\.device, which upstream has not"):
        excerpt.excerpt(MODULE.replace("return LIMIT", "return installed()"), "TestIt")
    with pytest.raises(Problem, match="no class TestOther"):
        excerpt.excerpt(MODULE, "TestOther")


def test_excerpt_shares_what_the_other_module_has_alike() -> None:
    part = excerpt.excerpt(MODULE, "TestIt")
    own = "import sys\n\nLIMIT = len(sys.path)\n"
    text = excerpt.add_to_module(own, part)
    assert text.count("LIMIT = ") == 1
    assert text.endswith("        assert gone\n")
