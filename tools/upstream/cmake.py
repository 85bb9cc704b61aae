"""Changes to upstream's CMake files."""

from __future__ import annotations

import re

from tools.upstream.edits import Edit, apply
from tools.upstream.errors import Missing


def add_beside(source: str, neighbour: str, file: str) -> str:
    """Names `file` wherever a list names `neighbour`, in the same way and right after it."""
    code = re.sub(r"#[^\n]*", lambda comment: " " * len(comment.group()), source)
    if re.search(rf'(?<![^\s"/(]){re.escape(file)}(?![^\s")])', code):
        return source
    pattern = re.compile(
        rf'^(?P<margin>[ \t]*)(?P<before>"?[^\s"()#]*?){re.escape(neighbour)}'
        r'(?P<after>"?)(?=[ \t\r)]*$)',
        re.MULTILINE,
    )
    edits = []
    for found in pattern.finditer(code):
        if found["before"].strip('"')[-1:] not in (
            "",
            "/",
        ):  # another file's name that ends so
            continue
        line = f'\n{found["margin"]}{found["before"]}{file}{found["after"]}'
        edits.append(Edit(found.end(), found.end(), line))
    if not edits:
        raise Missing(f"there is no list with a line for {neighbour}")
    return apply(source, edits)
