"""Imports, definitions and the names that they need, of a Python module."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass

from tools.upstream.edits import Edit, Parsed

LINE_LENGTH = 88  # black's and isort's, here and upstream

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, order=True)
class Import:
    """A name imported by `import module [as bound]` or `from module import name [as bound]`."""

    module: str
    name: str  # empty: the module itself
    bound: str

    def __str__(self) -> str:
        imported = self.name or self.module
        alias = (
            ""
            if self.bound in (imported, imported.split(".")[0])
            else f" as {self.bound}"
        )
        return (
            f"from {self.module} import {imported}{alias}"
            if self.name
            else f"import {imported}{alias}"
        )


def imports_of(statement: ast.stmt) -> list[Import]:
    match statement:
        case ast.Import(names=names):
            return [
                Import(alias.name, "", alias.asname or alias.name.split(".")[0])
                for alias in names
            ]
        case ast.ImportFrom(module=str(module), names=names, level=0):
            return [
                Import(module, alias.name, alias.asname or alias.name)
                for alias in names
            ]
    return []


def all_imports(module: ast.Module) -> list[Import]:
    return [found for statement in module.body for found in imports_of(statement)]


def bound_names(statement: ast.stmt) -> set[str]:
    """The names that a statement at the top level of a module gives a meaning."""
    match statement:
        case (
            ast.FunctionDef(name=name)
            | ast.AsyncFunctionDef(name=name)
            | ast.ClassDef(name=name)
        ):
            return {name}
        case ast.Assign() | ast.AnnAssign():
            nodes = ast.walk(statement)
            return {
                n.id
                for n in nodes
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            }
    return {found.bound for found in imports_of(statement)}


def used_names(node: ast.AST) -> set[str]:
    """The names that it reads and does not bind, and its parameters, which may be fixtures."""
    names = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
    own = {n.id for n in names if not isinstance(n.ctx, ast.Load)}
    parameters = {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
    return ({n.id for n in names} - own) | parameters


def find(module: ast.Module, name: str) -> Definition | None:
    for statement in module.body:
        if isinstance(statement, Definition) and statement.name == name:
            return statement
    return None


def method(owner: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    for statement in owner.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            return statement
    return None


def _order(name: str) -> tuple[int, str]:
    """isort's order of the names in one statement: constants, classes, the rest."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    return kind, name


def _from_statement(module: str, names: list[str]) -> str:
    """As isort and black write it, without a newline at the end."""
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= LINE_LENGTH:
        return line
    return (
        f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"
    )


def _section(module: str) -> int:
    if module == "__future__":
        return 0
    return 1 if module.split(".")[0] in sys.stdlib_module_names else 2


def _key(statement: ast.stmt) -> tuple[int, bool, str]:
    found = imports_of(statement)[0]
    return _section(found.module), bool(found.name), found.module.lower()


def _head(parsed: Parsed) -> list[ast.stmt]:
    """The imports that the module begins with."""
    body = parsed.module.body
    first = 1 if ast.get_docstring(parsed.module, clean=False) is not None else 0
    head = []
    for statement in body[first:]:
        if not imports_of(statement):
            break
        head.append(statement)
    return head


def _new_statement(parsed: Parsed, text: str, key: tuple[int, bool, str]) -> Edit:
    """The edit that puts an import where isort would."""
    head = _head(parsed)
    kin = [statement for statement in head if _key(statement)[0] == key[0]]
    later = next((statement for statement in kin if _key(statement) > key), None)
    if later is not None:
        place = parsed.line_start(later.lineno)
        return Edit(place, place, f"{text}\n")
    if kin:
        place = parsed.line_after(kin[-1])
        return Edit(place, place, f"{text}\n")
    before = [statement for statement in head if _key(statement)[0] < key[0]]
    if before:
        place = parsed.line_after(before[-1])
        return Edit(place, place, f"\n{text}\n")
    if head:
        place = parsed.line_start(parsed.first_line_with_comments(head[0]))
        return Edit(place, place, f"{text}\n\n")
    if ast.get_docstring(parsed.module, clean=False) is not None:
        place = parsed.line_after(parsed.module.body[0])
        return Edit(place, place, f"\n{text}\n")
    return Edit(0, 0, f"{text}\n\n")


def add_imports(parsed: Parsed, wanted: list[Import]) -> list[Edit]:
    """Adds what the module does not import yet, where and as isort's black profile would."""
    missing = sorted(set(wanted) - set(all_imports(parsed.module)))
    edits = [
        _new_statement(
            parsed, str(new), (_section(new.module), False, new.module.lower())
        )
        for new in missing
        if not new.name
    ]
    for module in sorted({new.module for new in missing if new.name}):
        names = [
            str(new).split(" import ", 1)[1]
            for new in missing
            if new.module == module and new.name
        ]
        present = next(
            (
                statement
                for statement in _head(parsed)
                if isinstance(statement, ast.ImportFrom) and statement.module == module
            ),
            None,
        )
        if present is None or "#" in parsed.text(present):
            text = _from_statement(module, sorted(names, key=_order))
            edits.append(
                _new_statement(parsed, text, (_section(module), True, module.lower()))
            )
        else:
            names += [str(old).split(" import ", 1)[1] for old in imports_of(present)]
            text = _from_statement(module, sorted(names, key=_order))
            edits.append(Edit(parsed.start(present), parsed.end(present), text))
    return edits
