"""Series 2: RuntimeCache saves itself at the exit of the interpreter, with its tests."""

from __future__ import annotations

from collections.abc import Callable

from tools.upstream.excerpt import add_to_module, excerpt, new_module
from tools.upstream.runtime_cache_class import anchor_autosave
from tools.upstream.series import Series, Tree

MODULE = "py/torch_tensorrt/runtime/_runtime_cache.py"
TESTS = "tests/py/dynamo/runtime/test_000_runtime_cache.py"
TEST_CLASS = "TestRuntimeCacheAutosave"
FILES = [TESTS]

SUBJECT = "fix(runtime): anchor the autosave of RuntimeCache at interpreter exit"
WHAT = (
    "A module-level function over a weak reference, which does not keep the cache alive, is "
    "registered with atexit. It and __del__ save by one method, which turns autosave_on_del off "
    "first, so that the save happens once, and lets no exception out. __del__ unregisters the very "
    "token, so that the registry grows with the caches that are alive."
)
WHY = (
    "A RuntimeCache that an engine made for itself saves itself in __del__. If it lives until the "
    "interpreter exits, __del__ comes when imports no longer work, on which the save depends, and "
    "the kernels are lost. atexit comes before that."
)
HOW_TESTED = (
    f"pytest {TESTS} -k {TEST_CLASS}: the hook, a dead reference, the token in the registry, and "
    "the ImportError of a shutdown inside __del__. No GPU is needed."
)
TEST_DOCSTRING = (
    "RuntimeCache saves itself once: when it goes, or when the interpreter exits."
)


def build(ours: Callable[[str], str], tree: Tree) -> Series:
    """`ours` reads a file of this repository."""
    series = Series("autosave", SUBJECT, WHY, HOW_TESTED)
    tree.change(MODULE, "the autosave at exit", anchor_autosave, series.left_out)
    if "_autosave_at_exit" in (tree.read(MODULE) or ""):
        part = excerpt(ours(TESTS), TEST_CLASS)
        if tree.read(TESTS) is None:
            tree.write(TESTS, new_module(TEST_DOCSTRING, part))
        else:
            tree.change(
                TESTS,
                "the tests of the autosave",
                lambda source: add_to_module(source, part),
                series.left_out,
            )
    else:
        series.left_out.append(
            f"{TESTS}: without the autosave at exit there is nothing to test"
        )
    tree.commit(series, SUBJECT, what=[WHAT], why=WHY, how_tested=HOW_TESTED)
    return series
