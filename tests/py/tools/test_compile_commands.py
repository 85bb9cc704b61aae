"""tools/compile_commands on action graphs as Bazel 4 and Bazel 7 print them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools.compile_commands.compile_commands import Folders, compile_commands

BASE = Path("/base")
ROOT = BASE / "execroot" / "main"
OUT = "bazel-out/k8-fastbuild/bin"


def action(source: str, *flags: str) -> dict[str, Any]:
    return {
        "mnemonic": "CppCompile",
        "arguments": [
            *(
                "/usr/bin/gcc",
                "-Wall",
                "-MD",
                "-MF",
                f"{OUT}/a.d",
                f"-frandom-seed={OUT}/a.o",
            ),
            *(
                "-fno-canonical-system-headers",
                "-iquote",
                ".",
                "-iquote",
                f"{OUT}",
                *flags,
            ),
            *("-c", source, "-o", f"{OUT}/a.o"),
        ],
    }


# The first is Bazel 4's, which uses numbers as ids. The second is Bazel 7's, which has more fields
# per action.
GRAPHS = [
    lambda *actions: {
        "artifacts": [{"id": 1, "pathFragmentId": 1}],
        "actions": list(actions),
    },
    lambda *actions: {
        "actions": [
            {
                **action,
                "executionPlatform": "@@platforms//host",
                "environmentVariables": [],
            }
            for action in actions
        ],
        "configuration": [{"id": 1, "isTool": False}],
    },
]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    for name in ("b.cpp", "a.cpp"):
        (tmp_path / name).touch()
    return Folders(tmp_path, BASE, ROOT)


@pytest.mark.parametrize("graph", GRAPHS)
def test_entries(folders: Folders, graph: Any) -> None:
    actions = [
        action(
            "b.cpp",
            "-isystem",
            "external/torch/include",
            "-Iexternal/cuda",
            "-DX=external/x",
        ),
        action("a.cpp"),
        action("a.cpp", "-DAGAIN"),
        action("external/googletest/gtest.cc"),
        action(f"{OUT}/generated.cpp"),
        {"mnemonic": "CppLink", "arguments": ["/usr/bin/gcc", "-o", "a"]},
    ]
    first, second = compile_commands(graph(*actions), folders)
    assert (first["file"], second["file"]) == ("a.cpp", "b.cpp")
    assert first["directory"] == str(folders.workspace)
    assert second["arguments"] == [
        "/usr/bin/gcc",
        "-Wno-unknown-warning-option",
        "-Wall",
        *("-iquote", ".", "-iquote", f"{ROOT}/{OUT}"),
        *("-isystem", f"{BASE}/external/torch/include", f"-I{BASE}/external/cuda"),
        "-DX=external/x",
        *("-c", "b.cpp", "-o", f"{ROOT}/{OUT}/a.o"),
    ]
    assert "-DAGAIN" not in first["arguments"]


def test_no_actions(folders: Folders) -> None:
    assert compile_commands({}, folders) == []
