"""RuntimeSettings, alone and on engines of both runtimes."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx
import torch

from tests.py.runtime.runtime_testing import (
    make_cache,
    make_plan,
    run,
    start,
)
from torch_tensorrt.runtime import RuntimeSettings

SPECIALIZATION = "dynamic_shapes_kernel_specialization_strategy"
STRATEGIES = [
    (SPECIALIZATION, ("lazy", "eager", "none")),
    ("cuda_graph_strategy", ("disabled", "whole_graph_capture")),
]


def test_defaults() -> None:
    assert dataclasses.asdict(RuntimeSettings()) == {
        SPECIALIZATION: "lazy",
        "cuda_graph_strategy": "disabled",
        "runtime_cache": None,
    }


@pytest.mark.parametrize(
    ("enum", "names"),
    [
        (tensorrt_rtx.DynamicShapesKernelSpecializationStrategy, STRATEGIES[0][1]),
        (tensorrt_rtx.CudaGraphStrategy, STRATEGIES[1][1]),
    ],
)
def test_the_strategies_are_those_of_tensorrt_rtx(
    enum: Any, names: tuple[str, ...]
) -> None:
    members = sorted(enum.__members__.values(), key=int)
    assert [member.name.lower() for member in members] == list(names)


@pytest.mark.parametrize(
    ("setting", "value"),
    [(setting, value) for setting, values in STRATEGIES for value in values],
)
def test_an_engine_runs_with_each_strategy(
    device: Any, runtime: str, setting: str, value: str
) -> None:
    plan = make_plan("a")
    module = start(runtime, plan, None)
    module.runtime_settings = RuntimeSettings().merge(**{setting: value})
    run(module, plan)
    assert getattr(module.runtime_settings, setting) == value


@pytest.mark.parametrize(("setting", "names"), STRATEGIES)
@pytest.mark.parametrize("value", ["fast", "", "LAZY", "0"])
def test_an_unknown_strategy_lists_the_known(
    setting: str, names: tuple[str, ...], value: str
) -> None:
    expected = f"{setting} is {value!r}, expected .*{names[-2]!r} or {names[-1]!r}"
    with pytest.raises(ValueError, match=expected):
        RuntimeSettings(**{setting: value})


@pytest.mark.parametrize(("setting", "names"), STRATEGIES)
@pytest.mark.parametrize("value", [0, None, True, b"lazy"])
def test_a_strategy_of_a_wrong_type_lists_the_known(
    setting: str, names: tuple[str, ...], value: Any
) -> None:
    expected = f"of type {type(value).__name__}; expected .*{names[0]!r}.* or "
    with pytest.raises(TypeError, match=expected):
        RuntimeSettings(**{setting: value})


def test_a_path_is_kept_as_str(path: Path) -> None:
    settings = RuntimeSettings(runtime_cache=path)
    assert settings.runtime_cache == str(path)
    assert settings == RuntimeSettings(runtime_cache=str(path))


@pytest.mark.parametrize("value", [b"cache.bin", 1, torch.empty(0), object])
def test_a_cache_of_a_wrong_type_is_named(value: Any) -> None:
    expected = (
        f"of type {type(value).__name__}; expected a RuntimeCache, a path or None"
    )
    with pytest.raises(TypeError, match=expected):
        RuntimeSettings(runtime_cache=value)


@pytest.mark.parametrize("value", ["", "cache\0.bin", "cache\udcff.bin"])
def test_a_path_that_can_be_no_files_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="path of a runtime cache"):
        RuntimeSettings(runtime_cache=value)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("s3://bucket", "s3://bucket/"),
        ("gs://bucket/a/b/?mode=write", "gs://bucket/a/b/"),
        ("az://container/a?mode=read", "az://container/a/?mode=read"),
        ("file:///var/my%20cache", "/var/my cache/"),
    ],
)
def test_a_url_is_kept_in_its_shortest_form(value: str, kept: str) -> None:
    assert RuntimeSettings(runtime_cache=value).runtime_cache == kept


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("http://host/kernels/", "expected one of s3://, gs://, az:// or file://"),
        ("s3:///kernels/", "expected s3://BUCKET/PREFIX/"),
        ("s3://bucket/?mode=rw", "'mode' with the value 'rw'"),
        ("file://host/directory/", "expected file:///DIRECTORY/"),
        (Path("s3://bucket/kernels"), "lacks a slash"),
    ],
)
def test_what_is_no_url_of_a_cache_is_named(value: str | Path, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^The URL of a runtime cache ") as raised:
        RuntimeSettings(runtime_cache=value)
    assert reason in str(raised.value)


def test_a_file_url_means_no_path_that_can_not_be() -> None:
    with pytest.raises(ValueError, match=r"^The path of a runtime cache has a NUL"):
        RuntimeSettings(runtime_cache="file:///a%00b/")


def test_a_url_needs_the_library(
    runtime: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(path.parent))
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ImportError, match=re.escape("[fleet]")):
        make_cache(runtime, "s3://bucket/without-a-library/")


def test_without_a_home_a_url_has_a_temporary_place(
    runtime: str,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path.write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    tier = make_cache(runtime, f"s3://bucket/without-a-home/{runtime}/")._tier
    assert tier is not None
    assert Path(tier.directory).is_dir()
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "XDG_CACHE_HOME" in warning and f"'{tier.directory}'" in warning
    tier.end()
    assert not Path(tier.directory).exists()


@pytest.mark.parametrize("method", ["load", "save"])
def test_a_url_is_no_path(runtime: str, method: str) -> None:
    cache = make_cache(runtime)
    with pytest.raises(ValueError, match="take a path"):
        getattr(cache, method)("s3://bucket/")


def test_caches_are_equal_if_they_are_one_object(runtime: str, path: Path) -> None:
    cache = make_cache(runtime, path)
    settings = RuntimeSettings(runtime_cache=cache)
    assert settings.runtime_cache is cache
    assert settings == RuntimeSettings(runtime_cache=cache)
    assert settings != RuntimeSettings(runtime_cache=make_cache(runtime, path))
    assert settings != RuntimeSettings(runtime_cache=path)


def test_are_keys_of_a_dict(runtime: str, path: Path) -> None:
    cache = make_cache(runtime, path)
    keys = {
        RuntimeSettings(): 0,
        RuntimeSettings("eager"): 1,
        RuntimeSettings(runtime_cache=cache): 2,
        RuntimeSettings(runtime_cache=path): 3,
    }
    assert keys[RuntimeSettings("eager", "disabled", None)] == 1
    assert keys[RuntimeSettings(runtime_cache=cache)] == 2
    assert keys[RuntimeSettings(runtime_cache=str(path))] == 3


def test_can_not_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RuntimeSettings().cuda_graph_strategy = "disabled"  # type: ignore[misc]


def test_merge_replaces_what_is_named(path: Path) -> None:
    settings = RuntimeSettings("eager", runtime_cache=path)
    merged = settings.merge(cuda_graph_strategy="whole_graph_capture")
    assert merged == RuntimeSettings("eager", "whole_graph_capture", path)
    assert merged.merge(runtime_cache=None).runtime_cache is None
    assert settings == RuntimeSettings("eager", runtime_cache=path) == settings.merge()


def test_merge_lists_the_settings_if_there_is_none_of_the_name() -> None:
    expected = (
        "Unknown runtime setting 'cuda_graphs', expected "
        f"{SPECIALIZATION}, cuda_graph_strategy or runtime_cache"
    )
    with pytest.raises(TypeError, match=re.escape(expected)):
        RuntimeSettings().merge(cuda_graphs=True)


def test_merge_checks_the_values() -> None:
    with pytest.raises(ValueError, match="'on'"):
        RuntimeSettings().merge(cuda_graph_strategy="on")


def unpickled(settings: RuntimeSettings) -> Any:
    return pickle.loads(pickle.dumps(settings))


@pytest.mark.parametrize("duplicate", [unpickled, copy.copy, copy.deepcopy])
def test_copies_are_equal(
    duplicate: Callable[[RuntimeSettings], Any], path: Path
) -> None:
    settings = RuntimeSettings("none", "whole_graph_capture", path)
    assert duplicate(settings) == settings
