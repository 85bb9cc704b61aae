"""Writes compile_commands.json, from which clangd knows how each C++ file is compiled.

    ./bazelw run //:refresh_compile_commands

The file is in the workspace's root, and git ignores it. Run this again after adding a file or a
dependency.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDERS = ["core", "examples/cpp", "tests/cpp", "tests/util", "tools/perf"]

# Options that only GCC knows, or that are for Bazel's own bookkeeping, with the number of arguments
# that follow.
DROPPED = {"-MD": 0, "-MF": 1, "-fno-canonical-system-headers": 0}
DROPPED_PREFIXES = ("-frandom-seed=",)

# Makes clang accept the names of GCC's warnings.
ADDED = ["-Wno-unknown-warning-option"]

_NOT_IN_WORKSPACE = re.compile(r"^(-I|-iquote|-isystem|-B)?((external|bazel-out)/.*)$")


@dataclass(frozen=True)
class Folders:
    """`output_base` has what Bazel fetched, `execution_root` what it generated.

    The latter links to the former, but only to what the latest build needed.
    """

    workspace: Path
    output_base: Path
    execution_root: Path

    def absolute(self, argument: str) -> str:
        found = _NOT_IN_WORKSPACE.match(argument)
        if not found:
            return argument
        base = self.output_base if found[3] == "external" else self.execution_root
        return f"{found[1] or ''}{base / found[2]}"


def command_of(arguments: list[str], folders: Folders) -> list[str]:
    compiler, *rest = arguments
    command = [folders.absolute(compiler), *ADDED]
    skip = 0
    for argument in rest:
        if skip:
            skip -= 1
        elif argument in DROPPED:
            skip = DROPPED[argument]
        elif not argument.startswith(DROPPED_PREFIXES):
            command.append(folders.absolute(argument))
    return command


def compile_commands(graph: dict[str, Any], folders: Folders) -> list[dict[str, Any]]:
    """Returns one entry per source file, from what `bazel aquery --output=jsonproto` prints."""
    entries: dict[str, dict[str, Any]] = {}
    for action in graph.get("actions", []):
        arguments = action["arguments"]
        if action["mnemonic"] != "CppCompile" or "-c" not in arguments:
            continue
        file = arguments[arguments.index("-c") + 1]
        if not (folders.workspace / file).is_file():
            continue  # generated, or of another repository
        entry = {
            "directory": str(folders.workspace),
            "file": file,
            "arguments": command_of(arguments, folders),
        }
        entries.setdefault(file, entry)
    return [entries[file] for file in sorted(entries)]


def bazel(workspace: Path, *arguments: str) -> str:
    command = [str(workspace / "bazelw"), *arguments]
    return subprocess.run(
        command, cwd=workspace, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def main() -> None:
    workspace = Path(os.environ["BUILD_WORKSPACE_DIRECTORY"])
    lines = bazel(workspace, "info", "output_base", "execution_root").splitlines()
    info = dict(line.split(": ", 1) for line in lines)
    folders = Folders(
        workspace, Path(info["output_base"]), Path(info["execution_root"])
    )
    targets = " + ".join(f"//{folder}/..." for folder in FOLDERS)
    query = f'mnemonic("CppCompile", {targets})'
    graph = json.loads(bazel(workspace, "aquery", "--output=jsonproto", query))
    entries = compile_commands(graph, folders)
    file = workspace / "compile_commands.json"
    temporary = file.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(entries, indent=1) + "\n")
    temporary.replace(file)  # clangd may be reading it
    print(f"{file}: {len(entries)} files")


if __name__ == "__main__":
    main()
