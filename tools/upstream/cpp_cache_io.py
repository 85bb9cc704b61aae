"""Puts the file lock around load and save of the runtime cache, where upstream's C++ has them.

What is recognised: a function whose name says load or save and cache, that returns void or bool,
and that opens a file stream; the path is its parameter whose name ends with `path`, or a member
named `runtime_cache_path`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tools.upstream.edits import Edit, apply
from tools.upstream.errors import Missing

HELPER = """
namespace {

// The lock of the cache file at `path`, as Python's filelock takes it. Nothing, after a warning, if others keep it for
// longer than its time-out or it can't be taken: the file is then left alone, and kernels are compiled anew.
std::optional<util::FileLock> lock_runtime_cache(const std::filesystem::path& path, util::FileLock::Mode mode) {
  const std::string lock_path = util::FileLock::lock_path(path.string());
  try {
    util::FileLock lock(lock_path, mode);
    if (lock.try_lock_for()) {
      return lock;
    }
    LOG_WARNING("Another process holds '" << lock_path << "' for too long, so the runtime cache is left alone");
  } catch (const std::exception& error) {
    std::error_code ignored;
    if (mode == util::FileLock::Mode::kShared && !std::filesystem::exists(lock_path, ignored)) {
      return util::FileLock("", mode); // a read-only directory: nobody writes the file, so it is read without a lock
    }
    LOG_WARNING("The runtime cache is left alone: " << error.what());
  }
  return std::nullopt;
}

} // namespace
"""  # noqa: E501  C++ has 120 columns
INCLUDES = [
    "<exception>",
    "<filesystem>",
    "<optional>",
    "<string>",
    "<system_error>",
    '"core/util/file_lock.h"',
    '"core/util/prelude.h"',
]

_FUNCTION = re.compile(
    r"^[ \t]*(?P<type>[\w:<>]+(?:[ \t]*[&*])?)\s+(?:\w+::)*(?P<name>\w+)\s*"
    r"\((?P<parameters>[^;{}]*)\)\s*(?:const\s*)?(?:noexcept\s*)?\{",
    re.MULTILINE,
)
_NAME = re.compile(
    r"(?P<action>load|read|save|write)\w*cache|cache\w*(?P<action2>load|read|save|write)"
)
_STREAM = re.compile(r"\b(?:i|o)?fstream\b")
_FILE_WORK = re.compile(r"\b(?:(?:i|o)?fstream|rename|remove)\b")
_NAMESPACE = re.compile(r"^namespace (?:\w+::)*runtime \{[^\S\n]*\n", re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """Where a function takes the lock: before source[position], a statement in its block."""

    position: int
    margin: str
    path: str
    mode: str
    result: str


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match.group())


def without_text(source: str) -> str:
    """The source with comments and literals as blanks, so that each character keeps its place."""
    return re.sub(
        r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'',
        _blank,
        source,
        flags=re.DOTALL,
    )


def _end_of_block(code: str, begin: int) -> int:
    """The index of the brace that closes the one at `begin`."""
    depth = 0
    for index in range(begin, len(code)):
        depth += {"{": 1, "}": -1}.get(code[index], 0)
        if depth == 0:
            return index
    raise Missing("its braces do not match")


def _block_around(code: str, begin: int, position: int) -> int:
    """The index of the brace that opens the innermost block around `position`, from `begin` on."""
    opened = []
    for index in range(begin, position):
        if code[index] == "{":
            opened.append(index)
        elif code[index] == "}":
            opened.pop()
    return opened[-1]


def _statement_start(code: str, block: int, position: int) -> int:
    """Where the statement that has `position` in it, and stands in `block` itself, begins."""
    start = block + 1
    index = start
    while index < position:
        if code[index] == "{":
            index = _end_of_block(code, index)
            if index >= position:
                break
            start = index + 1
        elif code[index] == ";":
            start = index + 1
        index += 1
    return start + len(code[start:position]) - len(code[start:position].lstrip())


def _path_of(function: re.Match[str], body: str) -> str:
    for parameter in function["parameters"].split(","):
        name = re.search(r"(\w*path)\s*$", parameter)
        if name:
            return name.group(1)
    member = re.search(r"(?:\w+(?:\.|->))*\w*runtime_cache_path_?\b(?!\s*\()", body)
    if member is None:
        raise Missing(f"{function['name']} has no parameter or member that is a path")
    return member.group()


def _place(code: str, function: re.Match[str], action: str) -> Place | None:
    """None for a function that opens no file."""
    begin = function.end() - 1
    end = _end_of_block(code, begin)
    if not _STREAM.search(code, begin, end):
        return None
    result = {"void": "return;", "bool": "return false;"}.get(function["type"])
    if result is None:
        raise Missing(
            f"{function['name']} returns {function['type']}, so it can't end early"
        )
    work = [found.start() for found in _FILE_WORK.finditer(code, begin, end)]
    block = _block_around(code, begin, work[0])
    while _end_of_block(code, block) < work[-1]:
        block = _block_around(code, begin, block)
    position = _statement_start(code, block, work[0])
    line = code.rindex("\n", 0, position) + 1
    margin = code[line:position]
    if margin.strip():
        raise Missing(f"{function['name']} has more than one statement on a line")
    mode = "kShared" if action in ("load", "read") else "kExclusive"
    return Place(line, margin, _path_of(function, code[begin:end]), mode, result)


def places(source: str) -> list[Place]:
    code = without_text(source)
    found = []
    for function in _FUNCTION.finditer(code):
        name = _NAME.search(function["name"])
        place = (
            _place(code, function, name["action"] or name["action2"]) if name else None
        )
        if place is not None:
            found.append(place)
    return found


def _include_edits(source: str) -> list[Edit]:
    """Each header beside those of its kind (angle brackets, or a quoted folder), where it sorts."""
    lines = list(
        re.finditer(
            r'^#include (?P<header>[<"][^>"\n]+[>"])[^\n]*\n', source, re.MULTILINE
        )
    )
    edits = []
    for header in INCLUDES:
        if any(line["header"] == header for line in lines):
            continue
        own_folder = header.split("/")[0]
        kin = [
            line
            for line in lines[1:] or lines
            if line["header"].split("/")[0] == own_folder
        ]
        if header.startswith("<"):
            kin = [line for line in lines if re.fullmatch(r"<\w+>", line["header"])]
        after = next((line for line in kin if line["header"] > header), None)
        if after is not None:
            place = after.start()
        elif kin or lines:
            place = (kin or lines)[-1].end()
        else:
            raise Missing("it includes nothing")
        edits.append(Edit(place, place, f"#include {header}\n"))
    return edits


def add_lock(source: str) -> str:
    """Locks around every load and save; as it was if there is none, or a FileLock already."""
    if re.search(r"\bFileLock\b", source):
        return source
    found = places(source)
    if not found:
        return source
    code = without_text(source)
    namespace = _NAMESPACE.search(code)
    if namespace is None or namespace.end() > found[0].position:
        raise Missing("it has no line that opens the namespace runtime")
    edits = [*_include_edits(source), Edit(namespace.end(), namespace.end(), HELPER)]
    for place in found:
        margin = place.margin
        text = (
            f"{margin}const auto file_lock = "
            f"lock_runtime_cache({place.path}, util::FileLock::Mode::{place.mode});\n"
            f"{margin}if (!file_lock) {{\n{margin}  {place.result}\n{margin}}}\n"
        )
        edits.append(Edit(place.position, place.position, text))
    return apply(source, edits)
