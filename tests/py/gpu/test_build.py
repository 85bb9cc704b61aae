"""tools/gpu builds every C++ source by its own build, against the torch of this environment."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from tools.gpu.check.builder import (
    LIBRARY,
    configure_command,
    python_path,
    stage_package,
)
from tools.gpu.check.prerequisites import Machine, Options, look

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(
    not look(Options()).cmake or not look(Options()).generator,
    reason="needs cmake, and ninja or make",
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """This one, with stand-ins for TensorRT-RTX's headers and GoogleTest, which may be missing."""
    folder = tmp_path_factory.mktemp("stand_ins")
    version = metadata.version("tensorrt_rtx").split(".")
    (folder / "NvInferVersion.h").write_text(
        "".join(
            f"#define TRT_{name}_RTX {number}\n"
            for name, number in zip(["MAJOR", "MINOR", "PATCH"], version, strict=False)
        )
    )
    (folder / "googlemock").mkdir()
    (folder / "googlemock/CMakeLists.txt").touch()
    (folder / "CMakeLists.txt").write_text(
        "".join(
            f"add_library({name} INTERFACE)\n"
            for name in ("gtest", "gmock", "gmock_main")
        )
    )
    machine = look(Options(headers=folder, googletest=folder))
    assert machine.missing == []
    return machine


@pytest.fixture(scope="module")
def build_folder(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configured build."""
    folder = tmp_path_factory.mktemp("build")
    subprocess.run(configure_command(machine, folder), check=True)
    return folder


def commands_of(build_folder: Path) -> list[dict[str, str]]:
    commands: list[dict[str, str]] = json.loads(
        (build_folder / "compile_commands.json").read_text()
    )
    return commands


def test_no_source_is_forgotten(build_folder: Path) -> None:
    built = {Path(command["file"]).resolve() for command in commands_of(build_folder)}
    there = {
        path.resolve()
        for pattern in ("core/*/*.cpp", "tests/util/*/*.cpp", "tests/cpp/*.cpp")
        for path in ROOT.glob(pattern)
        if not path.name.endswith("_windows.cpp")
    }
    assert len(there) > 30
    assert there <= built


def test_each_test_of_bazel_is_a_program(machine: Machine, build_folder: Path) -> None:
    """Names in tests/cpp/BUILD are those of the programs that are built."""
    assert machine.cmake
    targets = subprocess.run(
        [machine.cmake, "--build", str(build_folder), "--target", "help"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    names = set(targets.replace(":", " ").split())
    build_file = (ROOT / "tests/cpp/BUILD").read_text()
    tests = [
        rule.partition('name = "')[2].partition('"')[0]
        for rule in build_file.split("\ncc_test(")[1:]
    ]
    assert len(tests) > 10
    assert set(tests) <= names


def test_a_source_that_uses_torch_compiles(build_folder: Path) -> None:
    (command,) = [
        command
        for command in commands_of(build_folder)
        if command["file"].endswith("core/runtime/RuntimeSettings.cpp")
    ]
    subprocess.run(command["command"], shell=True, cwd=command["directory"], check=True)
    (built,) = build_folder.rglob("RuntimeSettings.cpp.o")
    assert built.stat().st_size > 0


def test_the_package_is_the_tree_s_on_the_library_that_was_built(
    tmp_path: Path,
) -> None:
    (tmp_path / LIBRARY).write_bytes(b"library")
    staged = stage_package(tmp_path, tmp_path / "staged", LIBRARY)
    package = staged / "torch_tensorrt"
    sources = ROOT / "py/torch_tensorrt"
    assert (package / "__init__.py").samefile(sources / "__init__.py")
    assert (package / "runtime").samefile(sources / "runtime")
    assert (package / "lib" / LIBRARY).read_bytes() == b"library"
    version = (package / "_version.py").read_text()
    assert "__version__" in version
    assert "BUILT_FOR" in version
    assert python_path(staged)["PYTHONPATH"].startswith(str(staged))
    stage_package(tmp_path, tmp_path / "staged", LIBRARY)  # once more, over itself
