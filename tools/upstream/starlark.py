"""Changes to upstream's BUILD files: source in, source out, the same where it has the change."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tools.upstream.edits import Edit, Parsed, apply
from tools.upstream.errors import Missing

RULES_CC = "@rules_cc//cc:defs.bzl"


def calls(parsed: Parsed) -> Iterator[tuple[str, ast.Call]]:
    """The calls at the top level of the file, by the function's name."""
    for statement in parsed.module.body:
        match statement:
            case ast.Expr(value=ast.Call(func=ast.Name(id=name)) as call):
                yield name, call


def argument(call: ast.Call, name: str) -> ast.expr | None:
    return next((item.value for item in call.keywords if item.arg == name), None)


def find_target(parsed: Parsed, name: str) -> ast.Call | None:
    for _, call in calls(parsed):
        match argument(call, "name"):
            case ast.Constant(value=str(found)) if found == name:
                return call
    return None


def literal_list(value: ast.expr | None) -> ast.List | None:
    """The first list written out in an expression such as `[...] + select(...)`."""
    match value:
        case ast.List():
            return value
        case ast.BinOp(left=left, right=right):
            return literal_list(left) or literal_list(right)
    return None


def strings(value: ast.expr | None) -> list[str]:
    """All strings that are written out anywhere in the expression."""
    if value is None:
        return []
    constants = (node for node in ast.walk(value) if isinstance(node, ast.Constant))
    return [node.value for node in constants if isinstance(node.value, str)]


def target_with_source(parsed: Parsed, file: str) -> ast.Call | None:
    """The target that has `file` among its sources."""
    for _, call in calls(parsed):
        if file in strings(argument(call, "srcs")):
            return call
    return None


def add_to_list(source: str, target: str, attribute: str, value: str) -> str:
    """Appends to the list that is written out in an attribute of a target."""
    parsed = Parsed(source)
    call = find_target(parsed, target)
    if call is None:
        raise Missing(f"there is no target '{target}'")
    if value in strings(argument(call, attribute)):
        return source
    items = literal_list(argument(call, attribute))
    if items is None or not items.elts:
        raise Missing(f"target '{target}' has no list in its attribute {attribute}")
    last = items.elts[-1]
    if last.lineno == items.lineno:
        written = [parsed.text(item) for item in items.elts] + [f'"{value}"']
        body = "".join(f"        {text},\n" for text in written)
        return apply(
            source, [Edit(parsed.start(items), parsed.end(items), f"[\n{body}    ]")]
        )
    end = parsed.end(last)
    rest = source[end : parsed.line_after(last)]
    if rest.strip().startswith(("]", ",]", ", ]")):
        raise Missing(
            f"target '{target}' has {attribute} in a layout that buildifier would not write"
        )
    comma = "" if rest.lstrip().startswith(",") else ","
    place = end + len(rest.rstrip())
    text = f'\n{" " * last.col_offset}"{value}",'
    return apply(source, [Edit(end, end, comma), Edit(place, place, text)])


def _sort_key(value: str) -> tuple[int, list[str], str]:
    """buildifier's order: files, then labels of this package, of this repository, of others."""
    prefixes = {":": 1, "/": 2, "@": 3}
    return prefixes.get(value[:1], 0), value.replace(":", ".").split("."), value


def sort_list(source: str, target: str, attribute: str) -> str:
    """Sorts as buildifier does; a list with a comment or anything but strings stays as it is."""
    parsed = Parsed(source)
    call = find_target(parsed, target)
    items = literal_list(argument(call, attribute)) if call is not None else None
    if items is None or "#" in parsed.text(items):
        return source
    values = [item.value for item in items.elts if isinstance(item, ast.Constant)]
    names = [value for value in values if isinstance(value, str)]
    if len(names) != len(items.elts):
        return source
    edits = [
        Edit(parsed.start(item), parsed.end(item), f'"{name}"')
        for item, name in zip(items.elts, sorted(names, key=_sort_key), strict=True)
    ]
    return apply(source, edits)


def _load(source: str, symbol: str) -> str:
    """Makes a rule of rules_cc known to a file that neither loads nor uses it so far."""
    parsed = Parsed(source)
    loads = [call for name, call in calls(parsed) if name == "load"]
    if any(name == symbol for name, _ in calls(parsed)):
        return source
    if any(symbol in strings(call) for call in loads):
        return source
    for call in loads:
        if strings(call.args[0]) == [RULES_CC]:
            names = sorted(
                [*(parsed.text(item) for item in call.args[1:]), f'"{symbol}"']
            )
            first, last = parsed.end(call.args[0]), parsed.end(call.args[-1])
            return apply(
                source, [Edit(first, last, "".join(f", {name}" for name in names))]
            )
    line = f'load("{RULES_CC}", "{symbol}")\n'
    after = loads[-1] if loads else None
    if after is not None:
        place = parsed.line_after(after)
        return apply(source, [Edit(place, place, line)])
    statements = parsed.module.body
    place = (
        parsed.line_start(parsed.first_line_with_comments(statements[0]))
        if statements
        else 0
    )
    return apply(source, [Edit(place, place, line + "\n" if statements else line)])


def add_target(source: str, rule: str, attributes: dict[str, str]) -> str:
    """Appends the target; `attributes` are written out as Starlark, in buildifier's order."""
    name = ast.literal_eval(attributes["name"])
    if find_target(Parsed(source), name) is not None:
        return source
    package = next(
        (call for kind, call in calls(Parsed(source)) if kind == "package"), None
    )
    is_visible = (
        package is not None and argument(package, "default_visibility") is not None
    )
    if not is_visible:
        attributes = {**attributes, "visibility": '["//visibility:public"]'}
        if "deps" in attributes:
            attributes["deps"] = attributes.pop("deps")
    source = _load(source, rule)
    body = "".join(f"    {key} = {value},\n" for key, value in attributes.items())
    text = f"{rule}(\n{body})\n"
    if source and not source.endswith("\n"):
        text = "\n" + text
    return apply(
        source, [Edit(len(source), len(source), ("\n" if source else "") + text)]
    )
