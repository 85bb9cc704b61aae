"""The docstrings of the public API match the code."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import inspect
import sys

import pytest

from tests.py.docs.public_api import MEMBERS, MODULES, Member

each_member = pytest.mark.parametrize("member", MEMBERS, ids=str)


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


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_described(name: str) -> None:
    assert importlib.import_module(name).__doc__


@each_member
def test_members_are_described(member: Member) -> None:
    assert member.docstring(), f"{member} has no docstring"


@each_member
def test_exceptions_are_real_and_public(member: Member) -> None:
    for name in member.section("Raises"):
        exception = getattr(builtins, name, None)
        for module in MODULES:
            exception = exception or getattr(sys.modules[module], name, None)
        assert inspect.isclass(
            exception
        ), f"{member}: {name} is not public or does not exist"
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
