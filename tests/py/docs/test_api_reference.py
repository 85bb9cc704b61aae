"""docs/api_reference.py shows all of the public API, and the docstrings are true to the code."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from docs import api_reference

PROGRAM = Path(__file__).parents[3] / "docs" / "api_reference.py"


@dataclass(frozen=True)
class Member:
    """A public class or function of a public module, or a public member of such a class."""

    module: str
    name: str  # within the module
    object: Any

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    def docstring(self) -> str:
        """Its own, without that of a base and the one that a dataclass makes."""
        text = self.object.__doc__ or ""
        is_made = inspect.isclass(self.object) and text.startswith(self.name + "(")
        return "" if is_made else inspect.cleandoc(text)

    def section(self, title: str) -> list[str]:
        """What stands before the colons of a list section of the docstring, split at commas."""
        match = re.search(rf"^{title}:\n((?: .*\n|\n)+)", self.docstring() + "\n", re.M)
        entries = re.findall(r"^    (\S[^:]*):", match[1], re.M) if match else []
        assert match is None or entries, f"{self} has an empty section {title}"
        return [name for entry in entries for name in entry.split(", ")]


def is_documentable(value: object) -> bool:
    return inspect.isroutine(value) or inspect.isclass(value)


def members_of_class(module: str, class_name: str, kind: type) -> Iterator[Member]:
    names = {
        name: value
        for base in reversed(kind.__mro__)
        if base.__module__.split(".")[0] == api_reference.PACKAGE
        for name, value in vars(base).items()
    }
    for name, value in names.items():
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        if not name.startswith("_") and (
            is_documentable(value) or isinstance(value, property)
        ):
            yield Member(module, f"{class_name}.{name}", value)


def members_of_module(name: str) -> Iterator[Member]:
    module = importlib.import_module(name)
    own = [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == name
    ]
    for key in getattr(module, "__all__", own):
        value = getattr(module, key)
        if is_documentable(value):
            yield Member(name, key, value)
            if inspect.isclass(value):
                yield from members_of_class(name, key, value)


MEMBERS = [m for name in api_reference.MODULES for m in members_of_module(name)]
each_member = pytest.mark.parametrize("member", MEMBERS, ids=str)


@pytest.fixture(scope="module")
def out_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("reference").resolve() / "made"
    command = [sys.executable, str(PROGRAM), str(out_dir)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"9 files, to begin with {out_dir / 'index.html'}\n"
    return out_dir


def page(out_dir: Path, module: str) -> str:
    return (out_dir / f"{module.replace('.', '/')}.html").read_text()


def test_the_api_is_found() -> None:
    found = {str(member) for member in MEMBERS}
    assert {
        "torch_tensorrt.compile",
        "torch_tensorrt.load",
        "torch_tensorrt.runtime.RuntimeCache",
        "torch_tensorrt.runtime.RuntimeCache.path",
        "torch_tensorrt.runtime.RuntimeCache.save",
        "torch_tensorrt.runtime.RuntimeSettings.merge",
        "torch_tensorrt.runtime.runtime_cache",
        "torch_tensorrt.runtime.runtime_config",
        "torch_tensorrt.runtime.default_runtime_cache_path",
        "torch_tensorrt.dynamo.runtime.TorchTensorRTModule.runtime_settings",
        "torch_tensorrt.dynamo.runtime.PythonTorchTensorRTModule.save",
        "torchtrt_cache.info.inspect",
    } <= found


@pytest.mark.parametrize("name", api_reference.MODULES)
def test_modules_are_described(name: str, out_dir: Path) -> None:
    assert importlib.import_module(name).__doc__
    assert 'class="docstring"' in page(out_dir, name)


def test_pages_are_reached_from_the_index(out_dir: Path) -> None:
    reached: set[Path] = set()
    todo = [out_dir / "index.html"]
    while todo:
        here = todo.pop()
        reached.add(here)
        links = re.findall(r'(?:href="|url=)([^":#]+\.html)', here.read_text())
        linked = {here.parent.joinpath(link).resolve() for link in links}
        todo += linked - reached
    assert reached == {path.resolve() for path in out_dir.rglob("*.html")}
    assert len(reached) == len(api_reference.MODULES) + 1


@each_member
def test_members_are_described(member: Member, out_dir: Path) -> None:
    assert member.docstring(), f"{member} has no docstring"
    assert f'id="{member.name}"' in page(out_dir, member.module)
    if inspect.isclass(member.object) and "__init__" in vars(member.object):
        assert f'id="{member.name}.__init__"' in page(out_dir, member.module)


@each_member
def test_exceptions_are_real_and_public(member: Member) -> None:
    for name in member.section("Raises"):
        exception = getattr(builtins, name, None)
        for module in api_reference.MODULES:
            exception = exception or getattr(sys.modules[module], name, None)
        assert inspect.isclass(exception), f"{member}: there is no public {name}"
        assert issubclass(exception, BaseException)


@each_member
def test_arguments_are_those_of_the_signature(member: Member) -> None:
    is_dataclass = dataclasses.is_dataclass(member.object)
    own = member.section("Attributes" if is_dataclass else "Args")
    inherited: list[str] = []
    for base in getattr(member.object, "__mro__", ())[1:]:
        inherited += Member(base.__module__, base.__name__, base).section("Args")
    if own or inherited:
        parameters = inspect.signature(member.object).parameters.keys() - {"self"}
        described = {name.lstrip("*") for name in own}
        assert described <= parameters <= described | set(inherited)


def test_constructors_are_described(out_dir: Path) -> None:
    text = page(out_dir, "torch_tensorrt.dynamo.runtime")
    assert "A torch module that runs a serialized TensorRT-RTX engine" in text
    assert "Initialize internal Module state" not in text  # torch's


def test_what_pdoc_warns_of_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "badly_annotated.py").write_text('def f(x: "Missing"):\n    """Doc."""')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(api_reference, "MODULES", ["badly_annotated"])
    with pytest.raises(Warning, match="Missing"):
        api_reference.render()
