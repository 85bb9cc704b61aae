"""Checks the whole tree with every formatter and linter. `--fix` fixes what they can fix.

    ./bazelw run //tools/lint -- [--fix]

The settings are in pyproject.toml and .clang-format. Exits with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import platformdirs


def files_of_project() -> list[str]:
    """Returns what git tracks or would track, relative to the current directory."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [name for name in names.splitlines() if Path(name).is_file()]


def with_suffix(files: list[str], *suffixes: str) -> list[str]:
    return [name for name in files if name.endswith(suffixes)]


def commands(files: list[str], fix: bool) -> dict[str, list[str]]:
    """Returns the command of every tool, by the tool's name."""
    cpp = with_suffix(files, ".h", ".cpp")
    python = with_suffix(files, ".py", ".pyi")
    starlark = with_suffix(files, "BUILD", ".bazel", ".bzl", "WORKSPACE")
    lint_python = os.environ["LINT_PYTHON"]
    scripts = Path(
        subprocess.run(
            [
                lint_python,
                "-c",
                "import sysconfig; print(sysconfig.get_path('scripts'))",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )

    def tool(name: str, *arguments: str) -> list[str]:
        return [str(scripts / name), *arguments]

    if fix:
        clang_format, buildifier = ["-i"], ["-mode=fix", "-lint=fix"]
        check: list[str] = []
    else:
        clang_format, buildifier = ["--dry-run", "-Werror"], [
            "-mode=check",
            "-lint=warn",
        ]
        check = ["--check"]
    return {
        "clang-format": tool("clang-format", *clang_format, *cpp),
        "isort": tool("isort", "--quiet", *check, *python),
        "black": tool("black", "--quiet", *check, *python),
        "ruff": tool(
            "ruff",
            "check",
            "--quiet",
            "--no-cache",
            *(["--fix"] if fix else []),
            *python,
        ),
        "mypy": tool(
            "mypy",
            f"--python-executable={sys.executable}",
            f"--cache-dir={cache_folder()}",
            *python,
        ),
        "typos": tool("typos", *(["--write-changes"] if fix else []), *files),
        "buildifier": [
            os.environ["BUILDIFIER"],
            *buildifier,
            "-warnings=-module-docstring",
            *starlark,
        ],
    }


def cache_folder() -> Path:
    """Returns where mypy keeps what it knows about torch. Without it a run takes minutes."""
    return platformdirs.user_cache_path("torch_tensorrt_mypy", appauthor=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fix", action="store_true", help="fix what can be fixed")
    arguments = parser.parse_args()

    os.chdir(os.environ["BUILD_WORKSPACE_DIRECTORY"])
    failed = []
    for name, command in commands(files_of_project(), arguments.fix).items():
        print(f"lint: {name}", flush=True)
        if subprocess.run(command).returncode:
            failed.append(name)
    if failed:
        sys.exit(
            f"lint: failed: {', '.join(failed)}. Try `./bazelw run //tools/lint -- --fix`"
        )


if __name__ == "__main__":
    main()
