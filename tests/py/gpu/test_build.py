"""CMake builds every C++ source of the runtime against the torch of this environment."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.gpu.check import configure_command, stage_package
from tools.gpu.prerequisites import Machine, look

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and (shutil.which("ninja") or shutil.which("make"))),
    reason="needs cmake, and ninja or make",
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """This one, with a stand-in for TensorRT-RTX's headers, which need not be there."""
    folder = tmp_path_factory.mktemp("headers")
    (folder / "NvInfer.h").touch()
    (folder / "NvInferVersion.h").write_text(
        "#define TRT_MAJOR_RTX 1\n#define TRT_MINOR_RTX 6\n#define TRT_PATCH_RTX 1\n"
    )
    machine = look(folder, builds_engines=True)
    assert [line for line in machine.missing if "GPU" not in line] == []
    return machine


@pytest.fixture(scope="module")
def commands(
    machine: Machine, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, str]]:
    """How the sources of a configured build are compiled."""
    folder = tmp_path_factory.mktemp("build")
    subprocess.run(configure_command(machine, folder), check=True)
    commands: list[dict[str, str]] = json.loads(
        (folder / "compile_commands.json").read_text()
    )
    return commands


def test_no_source_is_missing(commands: list[dict[str, str]]) -> None:
    built = {Path(command["file"]).resolve() for command in commands}
    expected = {
        path.resolve()
        for pattern in ("core/*/*.cpp", "tests/util/simulation/*.cpp")
        for path in ROOT.glob(pattern)
        if not path.name.endswith("_windows.cpp")
    }
    assert len(expected) > 20
    assert built == expected


def test_a_source_that_uses_torch_compiles(commands: list[dict[str, str]]) -> None:
    (command,) = [
        command
        for command in commands
        if command["file"].endswith("core/runtime/RuntimeSettings.cpp")
    ]
    subprocess.run(command["command"], shell=True, cwd=command["directory"], check=True)
    (built,) = Path(command["directory"]).rglob("RuntimeSettings.cpp.o")
    assert built.stat().st_size > 0


def test_the_package_is_the_tree_s_with_the_library_that_was_built(
    machine: Machine, tmp_path: Path
) -> None:
    build, staged = tmp_path / "build", tmp_path / "staged"
    build.mkdir()
    for content in ("one", "another"):
        (build / "libtorchtrt_runtime.so").write_text(content)
        stage_package(machine, build, staged)
        package = staged / "torch_tensorrt"
        assert (package / "lib/libtorchtrt_runtime.so").read_text() == content
        source = ROOT / "py/torch_tensorrt/__init__.py"
        assert (package / "__init__.py").read_bytes() == source.read_bytes()
    version = ".".join(machine.versions["torch"].split(".")[:2])
    text = (package / "_version.py").read_text()
    assert "__version__ = '2." in text
    assert f"BUILT_FOR = ('{version}', '1.6')" in text
