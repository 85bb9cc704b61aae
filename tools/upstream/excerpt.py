"""Takes a test class, with all that it needs of its module, into another module."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from tools.upstream.edits import Edit, Parsed, apply
from tools.upstream.errors import Conflict, Problem
from tools.upstream.python_module import (
    Import,
    add_imports,
    all_imports,
    bound_names,
    find,
    used_names,
)


@dataclass(frozen=True)
class Excerpt:
    """A class and what it needs, in the order of its module; definitions with their names."""

    imports: list[Import]
    definitions: list[tuple[str, str]]


def excerpt(source: str, name: str) -> Excerpt:
    """The class `name` with the imports, functions and constants that it uses, directly or not."""
    parsed = Parsed(source)
    statements = parsed.module.body
    if find(parsed.module, name) is None:
        raise Problem(f"there is no class {name}")
    needed: set[ast.stmt] = set()
    open_names = {name}
    while open_names:
        wanted = open_names.pop()
        for statement in statements:
            if wanted in bound_names(statement) and statement not in needed:
                needed.add(statement)
                open_names |= used_names(statement)
    definitions = []
    bound: set[str] = set()
    for statement in statements:
        if statement not in needed:
            continue
        bound |= used_names(statement)
        if isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        start = parsed.line_start(parsed.first_line_with_comments(statement))
        text = parsed.source[start : parsed.end(statement)]
        definitions.append((min(bound_names(statement)), text))
    imports = [found for found in all_imports(parsed.module) if found.bound in bound]
    annotations = [
        found for found in all_imports(parsed.module) if found.module == "__future__"
    ]
    strangers = sorted(
        {
            found.module
            for found in imports
            if found.module.split(".")[0] in ("tests", "tools")
        }
    )
    if strangers:
        raise Problem(f"{name} uses {', '.join(strangers)}, which upstream has not")
    return Excerpt([*annotations, *imports], definitions)


def new_module(docstring: str, part: Excerpt) -> str:
    """A module of its own with the class in it."""
    source = f'"""{docstring}"""\n'
    for new in part.imports:
        source = apply(source, add_imports(Parsed(source), [new]))
    return source + "".join(f"\n\n{text}\n" for _, text in part.definitions)


def add_to_module(source: str, part: Excerpt) -> str:
    """Adds what is not there yet, before an `if __name__ == ...` at its end."""
    # It keeps its own way with annotations, which every supported Python can evaluate.
    imports = [new for new in part.imports if new.module != "__future__"]
    source = apply(source, add_imports(Parsed(source), imports))
    parsed = Parsed(source)
    texts = []
    for name, text in part.definitions:
        present = next((s for s in parsed.module.body if name in bound_names(s)), None)
        if present is None:
            texts.append(text)
        elif ast.dump(present) != ast.dump(ast.parse(text).body[0]):
            raise Conflict(f"has another {name}")
    last = parsed.module.body[-1]
    if isinstance(last, ast.If) and "__name__" in parsed.text(last):
        place = parsed.line_start(parsed.first_line_with_comments(last))
        return apply(
            source, [Edit(place, place, "".join(f"{text}\n\n\n" for text in texts))]
        )
    return apply(
        source,
        [Edit(len(source), len(source), "".join(f"\n\n{text}\n" for text in texts))],
    )
