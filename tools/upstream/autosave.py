"""The series `autosave`: RuntimeCache also saves itself when the interpreter exits."""

from __future__ import annotations

import ast
from collections.abc import Callable

from tools.upstream.edits import find_definition, insert, replace_lines
from tools.upstream.tree import Missing, Series, Tree, prose

MODULE = "py/torch_tensorrt/runtime/_runtime_cache.py"
TESTS = "tests/py/dynamo/runtime/test_000_runtime_cache_autosave.py"
OUR_TESTS = "tests/py/dynamo/runtime/test_000_runtime_cache.py"

SUBJECT = "fix(runtime): anchor the autosave of RuntimeCache at interpreter exit"
WHY = prose("""
    A RuntimeCache that an engine made for itself saves itself in __del__. If it lives until the
    interpreter exits, __del__ runs when imports no longer work. The save depends on imports, so the
    kernels are lost. atexit hooks run before that.
    """)
TESTED = prose(f"""
    `pytest {TESTS}` needs no GPU. It tests the hook, a dead reference, the token in the registry,
    and the ImportError of a shutdown inside __del__.
    """)
BODY = prose("""
    atexit calls a function of the module with a weak reference, which does not keep the cache
    alive. The function and __del__ save by one method, which saves once and lets no exception
    escape. __del__ unregisters its own hook.
    """)

DOCSTRING_END = """
    A cache that saves itself does so when it is collected, or from an ``atexit``
    hook if it is alive when the interpreter exits. ``__del__`` may then be too
    late, because a save needs imports. The cache saves once.
"""
HOOK = '''\
def _autosave_at_exit(ref: "weakref.ref[RuntimeCache]") -> None:
    """Called by ``atexit``. The weak reference does not keep the cache alive."""
    cache = ref()
    if cache is not None:
        cache._autosave_if_enabled()


'''
REGISTER = """\
        self._atexit_token: Optional[Callable[[], None]] = None
        if autosave_on_del:
            self._register_atexit_autosave()
"""
METHODS = '''\
    def _register_atexit_autosave(self) -> None:
        self._atexit_token = atexit.register(
            partial(_autosave_at_exit, weakref.ref(self))
        )

    def _autosave_if_enabled(self) -> None:
        """Saves once. No exception escapes: at worst the kernels are compiled again."""
        try:
            # Missing if ``__init__`` failed.
            if getattr(self, "autosave_on_del", False) and self.path:
                self.autosave_on_del = False
                self.save()
        except Exception as error:
            try:
                logger.warning(f"Failed to save the runtime cache: {error}")
            except Exception:  # the interpreter is exiting
                pass

    def __getstate__(self) -> dict[str, Any]:
        # Another process, or a copy, registers a hook of its own.
        return {**self.__dict__, "_atexit_token": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.autosave_on_del:
            self._register_atexit_autosave()

'''
DEL = """\
        self._autosave_if_enabled()
        # Missing if ``__init__`` failed, or did not run, as in a failed copy.
        token = getattr(self, "_atexit_token", None)
        if token is not None:
            try:
                atexit.unregister(token)
            except Exception:  # the interpreter is exiting
                pass
"""
TESTS_HEAD = '''\
"""RuntimeCache saves itself once: when it is collected, or at interpreter exit."""

from __future__ import annotations

import atexit
import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from torch_tensorrt.runtime import RuntimeCache
from torch_tensorrt.runtime._runtime_cache import _autosave_at_exit
'''


def _end(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno


def _anchor_autosave(source: str) -> str:
    owner = find_definition(ast.parse(source), "RuntimeCache", ast.ClassDef)
    init = find_definition(owner, "__init__", ast.FunctionDef)
    delete = find_definition(owner, "__del__", ast.FunctionDef)
    for name in ("path", "save"):
        find_definition(owner, name, ast.FunctionDef)
    if not isinstance(owner.body[0], ast.Expr):
        raise Missing("RuntimeCache has no docstring")
    if ast.unparse(init.body[-1]) != "self.autosave_on_del = autosave_on_del":
        raise Missing("RuntimeCache.__init__ does not end by setting autosave_on_del")
    if len(delete.body) != 1 or "self.save()" not in ast.unparse(delete.body[0]):
        raise Missing("RuntimeCache.__del__ must have just a save")
    docstring_end, init_end = _end(owner.body[0]), _end(init) + 1
    source = replace_lines(
        source,
        [
            (owner.lineno, owner.lineno, HOOK),
            (docstring_end, docstring_end, DOCSTRING_END),
            (init_end, init_end, REGISTER),
            (delete.lineno, delete.lineno, METHODS),
            (delete.body[0].lineno, _end(delete.body[0]) + 1, DEL),
        ],
    )
    source = insert(source, "import logging", "import atexit\n")
    imports = "import weakref\nfrom functools import partial\n"
    source = insert(source, "import threading", imports, after=True)
    return insert(source, "    Any,", "    Callable,\n", after=True)


def _tests(ours: str) -> str:
    module = ast.parse(ours)
    text = TESTS_HEAD
    for name in ("ShuttingDownHandle", "TestRuntimeCacheAutosave"):
        found = find_definition(module, name, ast.ClassDef)
        text += "\n\n" + "".join(
            ours.splitlines(keepends=True)[found.lineno - 1 : _end(found)]
        )
    return text


def build(ours: Callable[[str], str], tree: Tree) -> Series:
    """`ours` reads a file of this repository."""
    series = Series("autosave", SUBJECT, WHY, TESTED, "- Bug fix")
    source = tree.find(MODULE)
    if source is None:
        series.not_sent = [f"Nothing: this commit has no {MODULE}."]
    elif "def _autosave_at_exit(" in source:
        series.not_sent = ["Nothing: RuntimeCache saves itself at exit already."]
    else:
        try:
            tree.edit(MODULE, _anchor_autosave)
            tree.add(TESTS, _tests(ours(OUR_TESTS)))
            tree.commit(series, SUBJECT, f"{WHY}\n\n{BODY}")
        except Missing as missing:
            series.not_sent = [f"Nothing: {missing}."]
    return series
