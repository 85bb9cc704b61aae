"""Edits sources by name.

Each edit raises Missing if the source lacks the name that the edit is anchored on. The functions
named `add_...` return a source unchanged if it already has the edit.
"""

from __future__ import annotations

import ast
import re
from typing import TypeVar

from tools.upstream.tree import Missing


def insert(source: str, anchor: str, text: str, *, after: bool = False) -> str:
    """Inserts lines before or after the one line that begins with `anchor`."""
    found = re.findall(rf"^{re.escape(anchor)}.*\n", source, re.MULTILINE)
    if len(found) != 1:
        raise Missing(f"{len(found)} lines begin with '{anchor.strip()}', expected one")
    line = found[0]
    return source.replace(line, line + text if after else text + line, 1)


def insert_in_function(
    source: str, name: str, inserted: list[tuple[str, str, bool]]
) -> str:
    """Does insert() for each (anchor, text, after) in the body of a C++ function."""
    found = re.search(
        rf"^void {name}\([^)]*\) {{\n.*?^}}\n", source, re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise Missing(f"there is no function {name}")
    body = found.group()
    for anchor, text, after in inserted:
        body = insert(body, anchor, text, after=after)
    return source[: found.start()] + body + source[found.end() :]


def _target(source: str, name: str) -> re.Match[str] | None:
    return re.search(
        rf'^\w+\(\n    name = "{re.escape(name)}",\n(?:[^)\n].*\n)*\)\n',
        source,
        re.MULTILINE,
    )


def _existing_target(source: str, name: str) -> re.Match[str]:
    found = _target(source, name)
    if found is None:
        raise Missing(f"there is no target '{name}'")
    return found


def add_target(source: str, after: str, name: str, text: str) -> str:
    """Adds a target to a BUILD file, after the target `after`."""
    if _target(source, name) is not None:
        return source
    end = _existing_target(source, after).end()
    return f"{source[:end]}\n{text}{source[end:]}"


def add_to_list(source: str, target: str, attribute: str, value: str) -> str:
    """Adds a string to a target's list with one item per line, where buildifier sorts it."""
    found = _existing_target(source, target)
    items = re.search(
        rf"^    {attribute} = \[\n((?:        .*\n)*)    \]",
        found.group(),
        re.MULTILINE,
    )
    if items is None:
        raise Missing(f"target '{target}' has no list '{attribute}'")
    lines = items[1].splitlines(keepends=True)
    new = f'        "{value}",\n'
    if new in lines:
        return source
    before = [i for i, line in enumerate(lines) if line[8] == '"' and line < new]
    lines.insert(before[-1] + 1 if before else 0, new)
    start = found.start() + items.start(1)
    return source[:start] + "".join(lines) + source[start + len(items[1]) :]


def add_to_toctree(source: str, caption: str, entry: str) -> str:
    """Adds a page to the end of the table of contents with that caption."""
    found = re.search(
        rf"^   :caption: {re.escape(caption)}\n\n(?:   \S+\n)+", source, re.MULTILINE
    )
    if found is None:
        raise Missing(f"there is no table of contents '{caption}'")
    line = f"   {entry}\n"
    if line in found.group():
        return source
    return source[: found.end()] + line + source[found.end() :]


Definition = TypeVar("Definition", ast.ClassDef, ast.FunctionDef)


def find_definition(
    scope: ast.Module | ast.ClassDef, name: str, kind: type[Definition]
) -> Definition:
    for statement in scope.body:
        if isinstance(statement, kind) and statement.name == name:
            return statement
    raise Missing(f"there is no {name}")


def replace_lines(source: str, edits: list[tuple[int, int, str]]) -> str:
    """Replaces, for each edit, lines `first` up to but not including `end`, counted from 1."""
    lines = source.splitlines(keepends=True)
    for first, end, text in sorted(edits, reverse=True):
        lines[first - 1 : end - 1] = [text]
    return "".join(lines)
