"""Anchors the autosave of upstream's class RuntimeCache at the exit of the interpreter."""

from __future__ import annotations

import ast

from tools.upstream.edits import Edit, Parsed, apply
from tools.upstream.errors import Conflict, Missing
from tools.upstream.python_module import Import, add_imports, bound_names, find, method

CLASS = "RuntimeCache"

HOOK = '''\
def _autosave_at_exit(ref: "weakref.ref[RuntimeCache]") -> None:
    """What ``atexit`` calls: it holds no reference that would keep the cache alive."""
    cache = ref()
    if cache is not None:
        cache._autosave_if_enabled()


'''

TOKEN = """\
        # First, so that ``__del__`` finds it however early ``__init__`` fails.
        self._atexit_token: Optional[Callable[[], None]] = None
"""

ANCHOR = """\
        if self.autosave_on_del:
            self._register_atexit_autosave()
"""

METHODS = '''\
    def _register_atexit_autosave(self) -> None:
        """Saves at interpreter exit too. ``__del__`` may then be too late: imports, on
        which a save depends, no longer work, whereas ``atexit`` runs before that."""
        self._atexit_token = atexit.register(
            partial(_autosave_at_exit, weakref.ref(self))
        )

    def _autosave_if_enabled(self) -> None:
        """Saves once; no exception escapes, at worst the kernels are compiled anew."""
        try:
            if self.autosave_on_del:
                self.autosave_on_del = False
                if self.path:
                    self.save()
        except Exception as error:
            try:
                logger.warning(f"Failed to save the runtime cache: {error}")
            except Exception:  # at interpreter exit
                pass

'''

PICKLING = """\
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_atexit_token": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.autosave_on_del:
            self._register_atexit_autosave()

"""

DEL = """\
    def __del__(self) -> None:
        self._autosave_if_enabled()
        token = getattr(self, "_atexit_token", None)
        if token is not None:
            try:
                atexit.unregister(token)
            except Exception:  # at interpreter exit
                pass
"""

IMPORTS = [
    Import("atexit", "", "atexit"),
    Import("weakref", "", "weakref"),
    Import("functools", "partial", "partial"),
    Import("typing", "Any", "Any"),
    Import("typing", "Callable", "Callable"),
    Import("typing", "Optional", "Optional"),
]


def _requirements(
    parsed: Parsed, owner: ast.ClassDef
) -> tuple[ast.FunctionDef, ast.FunctionDef]:
    """Its __init__ and __del__, if they are what the change is written for."""
    init, delete = method(owner, "__init__"), method(owner, "__del__")
    if init is None or delete is None:
        raise Missing(f"{CLASS} has no {'__init__' if init is None else '__del__'}")
    targets = [
        ast.unparse(node) for node in ast.walk(init) if isinstance(node, ast.Attribute)
    ]
    if "self.autosave_on_del" not in targets:
        raise Missing(f"{CLASS}.__init__ sets no autosave_on_del")
    if any(isinstance(node, ast.Return) for node in ast.walk(init)):
        raise Missing(f"{CLASS}.__init__ may return early")
    for name in ("path", "save"):
        if method(owner, name) is None:
            raise Missing(f"{CLASS} has no {name}")
    for name in ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"):
        if method(owner, name) is not None:
            raise Missing(f"{CLASS} has a {name} of its own")
    names = {
        name for statement in parsed.module.body for name in bound_names(statement)
    }
    if "logger" not in names:
        raise Missing("there is no logger")
    return init, delete


def _first_statement(parsed: Parsed, function: ast.FunctionDef) -> int:
    """Where the line of the first statement after the docstring begins, its comments included."""
    has_docstring = ast.get_docstring(function, clean=False) is not None
    if has_docstring:
        return parsed.line_after(function.body[0])
    header = parsed.source.rfind(
        ":", parsed.start(function), parsed.start(function.body[0])
    )
    return parsed.source.index("\n", header) + 1


def anchor_autosave(source: str) -> str:
    """As it was if the class has it already."""
    parsed = Parsed(source)
    owner = find(parsed.module, CLASS)
    if not isinstance(owner, ast.ClassDef):
        raise Missing(f"there is no class {CLASS}")
    has_hook = find(parsed.module, "_autosave_at_exit") is not None
    has_method = method(owner, "_autosave_if_enabled") is not None
    if has_hook and has_method:
        return source
    if has_hook or has_method:
        raise Conflict(
            f"{CLASS} has either of _autosave_at_exit and _autosave_if_enabled, but not both: "
            "another design of the autosave?"
        )
    init, delete = _requirements(parsed, owner)
    hook = parsed.line_start(parsed.first_line_with_comments(owner))
    first = _first_statement(parsed, init)
    end = parsed.line_after(init.body[-1])
    start = parsed.line_start(parsed.first_line(delete))
    future = any(
        isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
        for statement in parsed.module.body
    )
    pickling = PICKLING if future else PICKLING.replace("dict[", "Dict[")
    imports = IMPORTS if future else [*IMPORTS, Import("typing", "Dict", "Dict")]
    return apply(
        source,
        [
            *add_imports(parsed, imports),
            Edit(hook, hook, HOOK),
            Edit(first, first, TOKEN),
            Edit(end, end, ANCHOR),
            Edit(start, parsed.line_after(delete), METHODS + pickling + DEL),
        ],
    )
