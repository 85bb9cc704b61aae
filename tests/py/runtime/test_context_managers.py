"""runtime_config and runtime_cache: settings and caches for a block, in both runtimes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from tests.py.runtime.runtime_testing import (
    children,
    kernels_missing,
    make_cache,
    make_plan,
    run,
    start,
    start_and_save,
)
from torch_tensorrt.dynamo.runtime import TorchTensorRTModule
from torch_tensorrt.runtime import (
    RuntimeCache,
    RuntimeSettings,
    runtime_cache,
    runtime_config,
)

PLAN = make_plan("a")
OTHER_PLAN = make_plan("b")


def make_module(
    runtime: str, cache: RuntimeCache | Path | None = None
) -> TorchTensorRTModule:
    """A module whose engine is not loaded yet."""
    return TorchTensorRTModule(
        PLAN.engine,
        PLAN.inputs,
        PLAN.outputs,
        runtime_settings=RuntimeSettings(runtime_cache=cache),
        use_python_runtime=runtime == "python",
    )


def cache_of(module: TorchTensorRTModule) -> RuntimeCache | None:
    cache = module.runtime_settings.runtime_cache
    assert cache is None or isinstance(cache, RuntimeCache)
    return cache


class BlockError(Exception):
    pass


# runtime_config


def test_settings_hold_for_the_block(device: Any, runtime: str, path: Path) -> None:
    cache = make_cache(runtime, path)
    module = start(runtime, PLAN, cache)
    before = module.runtime_settings
    overrides = {"cuda_graph_strategy": "whole_graph_capture"}
    with runtime_config(module, **overrides):
        assert module.runtime_settings == before.merge(**overrides)
        assert cache_of(module) is cache
        run(module, PLAN)
    assert module.runtime_settings == before
    run(module, PLAN)


def test_settings_are_restored_after_an_exception(runtime: str) -> None:
    module = make_module(runtime)
    error = BlockError()
    overrides = {"cuda_graph_strategy": "whole_graph_capture"}
    with pytest.raises(BlockError) as raised, runtime_config(module, **overrides):
        raise error
    assert raised.value is error
    assert module.runtime_settings == RuntimeSettings()


def test_the_inner_settings_win(runtime: str, path: Path) -> None:
    module = make_module(runtime)
    with runtime_config(
        module, cuda_graph_strategy="whole_graph_capture", runtime_cache=path
    ):
        outer = module.runtime_settings
        with runtime_config(module, cuda_graph_strategy="disabled", runtime_cache=None):
            assert module.runtime_settings == RuntimeSettings()
        assert module.runtime_settings == outer
    assert module.runtime_settings == RuntimeSettings()


def test_the_cache_for_a_block_saves_and_the_one_before_is_put_back(
    device: Any, runtime: str, path: Path, tmp_path: Path
) -> None:
    path_before = tmp_path / "before.bin"
    module = start(runtime, PLAN, path_before)
    before = cache_of(module)
    with runtime_config(module, runtime_cache=path):
        run(module, PLAN)
    assert cache_of(module) is before
    run(module, PLAN)
    del module, before
    assert kernels_missing(runtime, path, PLAN) == 0
    assert kernels_missing(runtime, path_before, PLAN) == 0


def in_a_list(modules: list[TorchTensorRTModule]) -> object:
    return modules


def in_an_iterator(modules: list[TorchTensorRTModule]) -> object:
    return iter(modules)


def in_a_sequential(modules: list[TorchTensorRTModule]) -> object:
    return torch.nn.Sequential(
        torch.nn.ReLU(), *[torch.nn.Sequential(module) for module in modules]
    )


def twice(modules: list[TorchTensorRTModule]) -> object:
    return [torch.nn.ModuleList(modules), *modules]


@pytest.mark.parametrize("gather", [in_a_list, in_an_iterator, in_a_sequential, twice])
def test_settings_hold_for_each_engine_once(
    runtime: str,
    gather: Callable[[list[TorchTensorRTModule]], Any],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modules = [make_module(runtime), make_module(runtime, make_cache(runtime, path))]
    before = [module.runtime_settings for module in modules]
    settings: Any = TorchTensorRTModule.runtime_settings
    changed: list[object] = []

    def change(module: TorchTensorRTModule, value: RuntimeSettings) -> None:
        changed.append(module)
        settings.__set__(module, value)

    monkeypatch.setattr(
        TorchTensorRTModule, "runtime_settings", settings.setter(change)
    )
    with runtime_config(gather(modules), cuda_graph_strategy="whole_graph_capture"):
        for module, old in zip(modules, before, strict=True):
            expected = old.merge(cuda_graph_strategy="whole_graph_capture")
            assert module.runtime_settings == expected
    assert [module.runtime_settings for module in modules] == before
    assert len(changed) == 2 * len(modules)


def test_settings_that_one_engine_refuses_change_none(path: Path) -> None:
    cpp, python = make_module("cpp", path), make_module("python")
    before = cache_of(cpp)
    overrides = {"runtime_cache": make_cache("cpp")}
    with (
        pytest.raises(ValueError, match="Python runtime"),
        runtime_config([cpp, python], **overrides),
    ):
        pytest.fail("the block ran")
    assert cache_of(cpp) is before
    assert python.runtime_settings == RuntimeSettings()


def test_settings_that_fail_half_way_are_put_back(
    runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module(runtime)
    settings: Any = TorchTensorRTModule.runtime_settings

    def change(module: TorchTensorRTModule, value: RuntimeSettings) -> None:
        settings.__set__(module, value)
        if value != RuntimeSettings():
            raise BlockError

    monkeypatch.setattr(
        TorchTensorRTModule, "runtime_settings", settings.setter(change)
    )
    with pytest.raises(BlockError), runtime_config(module, runtime_cache="cache.bin"):
        pytest.fail("the block ran")
    assert module.runtime_settings == RuntimeSettings()


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"cuda_graphs": True}, TypeError),
        ({"cuda_graph_strategy": "on"}, ValueError),
        ({"runtime_cache": 1}, TypeError),
    ],
)
def test_wrong_settings_change_nothing(
    runtime: str, overrides: dict[str, Any], error: type[Exception]
) -> None:
    module = make_module(runtime)
    with pytest.raises(error), runtime_config(module, **overrides):
        pytest.fail("the block ran")
    assert module.runtime_settings == RuntimeSettings()


def use_config(targets: Any) -> None:
    with runtime_config(targets):
        pytest.fail("the block ran")


def use_cache(targets: Any) -> None:
    with runtime_cache(targets, "cache.bin"):
        pytest.fail("the block ran")


@pytest.mark.parametrize("use", [use_config, use_cache])
def test_targets_without_engines_are_named(use: Callable[[Any], None]) -> None:
    engine = make_module("python")
    with pytest.raises(ValueError, match="no engine under the target ReLU"):
        use(torch.nn.ReLU())
    with pytest.raises(ValueError, match="no engine under the target Sequential"):
        use([engine, torch.nn.Sequential(torch.nn.ReLU())])
    with pytest.raises(ValueError, match="no targets"):
        use([])
    with pytest.raises(TypeError, match="A target is 3, of type int"):
        use(3)
    with pytest.raises(TypeError, match="A target is 'engine', of type str"):
        use([engine, "engine"])


def test_settings_decorate_a_function(device: Any, runtime: str) -> None:
    module = make_module(runtime)

    @runtime_config(module, cuda_graph_strategy="whole_graph_capture")
    def strategy(recursions: int) -> str:
        run(module, PLAN)
        if recursions > 0:
            assert strategy(recursions - 1) == "whole_graph_capture"
        return module.runtime_settings.cuda_graph_strategy

    for _ in range(2):
        assert strategy(1) == "whole_graph_capture"
        assert module.runtime_settings == RuntimeSettings()


# runtime_cache


def test_the_second_block_is_warm(device: Any, runtime: str, path: Path) -> None:
    module = make_module(runtime)
    with runtime_cache(module, path) as cache:
        assert not cache.has_cache()
        run(module, PLAN)
    assert kernels_missing(runtime, path, PLAN) == 0
    with runtime_cache([module], str(path)) as cache:
        assert cache.path == str(path)
        assert cache.has_cache()
        run(module, PLAN)
        if device is not None:
            device.reset_counters()
            run(module, PLAN)
            assert device.counters()["compilations"] == 0


def test_all_engines_share_the_cache_and_get_theirs_back(
    device: Any, runtime: str, path: Path, tmp_path: Path
) -> None:
    modules = [
        start(runtime, PLAN, make_cache(runtime)),
        start(runtime, OTHER_PLAN, tmp_path / "implicit.bin"),
        start(runtime, OTHER_PLAN, None),
    ]
    before = [cache_of(module) for module in modules]
    with runtime_cache(torch.nn.ModuleList(modules), path) as cache:
        assert [cache_of(module) for module in modules] == [cache] * 3
        assert cache.is_cpp_runtime() == (runtime == "cpp")
        for module, plan in zip(modules, [PLAN, OTHER_PLAN, OTHER_PLAN], strict=True):
            run(module, plan)
    assert [cache_of(module) for module in modules] == before
    assert kernels_missing(runtime, path, PLAN, OTHER_PLAN) == 0


def test_the_inner_cache_wins(
    device: Any, runtime: str, path: Path, tmp_path: Path
) -> None:
    module = make_module(runtime)
    with runtime_cache(module, path) as outer:
        with runtime_cache(module, tmp_path / "inner.bin") as inner:
            assert cache_of(module) is inner
            run(module, PLAN)
        assert cache_of(module) is outer
    assert cache_of(module) is None
    assert kernels_missing(runtime, tmp_path / "inner.bin", PLAN) == 0
    assert not path.exists()


def test_nested_blocks_may_share_a_path(device: Any, runtime: str, path: Path) -> None:
    module, other = make_module(runtime), start(runtime, OTHER_PLAN, None)
    with runtime_cache([module, other], path):
        run(other, OTHER_PLAN)
        with runtime_cache(module, path):
            run(module, PLAN)
    assert kernels_missing(runtime, path, PLAN, OTHER_PLAN) == 0


def test_saves_once_and_after_the_engines_have_let_go(
    device: Any, runtime: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module(runtime)
    caches_at_saves: list[RuntimeCache | None] = []
    save = RuntimeCache.save

    def record(self: RuntimeCache) -> int:
        caches_at_saves.append(cache_of(module))
        return save(self)

    monkeypatch.setattr(RuntimeCache, "save", record)
    with runtime_cache(module, path) as cache:
        run(module, PLAN)
    del cache
    assert caches_at_saves == [None]
    assert path.exists()


def test_without_autosave_nothing_is_saved(
    device: Any, runtime: str, path: Path
) -> None:
    module = make_module(runtime)
    with runtime_cache(module, path, autosave=False) as cache:
        run(module, PLAN)
    assert not path.exists()
    assert cache.save() > 0
    assert kernels_missing(runtime, path, PLAN) == 0


def test_what_others_save_meanwhile_stays(
    device: Any, runtime: str, path: Path
) -> None:
    module = make_module(runtime)
    with children(1) as (child,), runtime_cache(module, path):
        run(module, PLAN)
        assert child(start_and_save, runtime, path, OTHER_PLAN) > 0
    assert kernels_missing(runtime, path, PLAN, OTHER_PLAN) == 0


@pytest.mark.parametrize(
    "error", [BlockError(), KeyboardInterrupt(), SystemExit(3)], ids=repr
)
def test_saves_if_the_block_raises(
    device: Any, runtime: str, path: Path, error: BaseException
) -> None:
    module = make_module(runtime)
    with pytest.raises(type(error)) as raised, runtime_cache(module, path):
        run(module, PLAN)
        raise error
    assert raised.value is error
    assert cache_of(module) is None
    assert kernels_missing(runtime, path, PLAN) == 0


def test_a_failed_save_is_an_error(device: Any, runtime: str, tmp_path: Path) -> None:
    module = make_module(runtime)
    path = tmp_path / "missing" / "cache.bin"
    with (
        pytest.raises(RuntimeError, match=f"Can't save .*'{path}'"),
        runtime_cache(module, path),
    ):
        run(module, PLAN)
    assert cache_of(module) is None


def test_a_failed_save_hides_no_exception(
    device: Any, runtime: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = make_module(runtime)
    path = tmp_path / "missing" / "cache.bin"
    error = BlockError()
    with pytest.raises(BlockError) as raised, runtime_cache(module, path):
        run(module, PLAN)
        raise error
    assert raised.value is error
    assert error.__context__ is error.__cause__ is None
    assert cache_of(module) is None
    (warning,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert f"Can't save the runtime cache '{path}'" in warning.getMessage()


def test_a_failed_load_costs_a_warning_and_a_cold_start(
    device: Any, runtime: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(path)
    module = make_module(runtime)
    with runtime_cache(module, path, autosave=False):
        (warning,) = [r for r in caplog.records if r.levelname == "WARNING"]
        assert f"'{path}' is not a regular file" in warning.getMessage()
        run(module, PLAN)


def test_engines_of_both_runtimes_have_no_cache_in_common(path: Path) -> None:
    modules = [make_module("cpp"), make_module("python"), make_module("python")]
    expected = "1 of the engines .* on the C\\+\\+ runtime and 2 on the Python runtime"
    with pytest.raises(ValueError, match=expected), runtime_cache(modules, path):
        pytest.fail("the block ran")


def test_the_cache_decorates_a_function(device: Any, runtime: str, path: Path) -> None:
    module = make_module(runtime)

    @runtime_cache(module, path)
    def infer() -> RuntimeCache | None:
        run(module, PLAN)
        return cache_of(module)

    first, second = infer(), infer()
    assert first is not None and second is not None and first is not second
    assert kernels_missing(runtime, path, PLAN) == 0


# Streams


def test_a_stream_is_loaded_and_replaced_from_its_position(
    device: Any, runtime: str, path: Path
) -> None:
    module = make_module(runtime)
    stream = io.BytesIO(b"header")
    stream.seek(6)
    for has_cache in (False, True):
        with runtime_cache(module, stream) as cache:
            assert cache.has_cache() == has_cache
            assert cache.path == ""
            assert stream.tell() == 6
            run(module, PLAN)
            stream.seek(0)
        assert stream.tell() == 6
    path.write_bytes(stream.read())
    assert stream.getvalue().startswith(b"header")
    assert kernels_missing(runtime, path, PLAN) == 0


def test_a_shorter_save_leaves_nothing_of_the_stream_before(
    device: Any, runtime: str
) -> None:
    module = make_module(runtime)
    clean = io.BytesIO()
    with runtime_cache(module, clean):
        run(module, PLAN)
    used = io.BytesIO(bytes(len(clean.getvalue()) + 1000))  # not a cache
    with runtime_cache(module, used):
        run(module, PLAN)
    assert len(used.getvalue()) == len(clean.getvalue())


def test_a_save_without_bytes_leaves_a_stream_alone(runtime: str) -> None:
    class Unread(io.BytesIO):
        """A stream that has more data after read() has reported its end."""

        def read(self, size: int | None = -1, /) -> bytes:
            return b""

    stream = Unread(b"precious")
    with runtime_cache(make_module(runtime), stream):
        pass
    assert stream.getvalue() == b"precious"


def test_a_file_is_written_when_the_block_ends(
    device: Any, runtime: str, path: Path
) -> None:
    module = make_module(runtime)
    with path.open("wb", buffering=1 << 20) as sink:
        with runtime_cache(module, sink):
            run(module, PLAN)
        assert kernels_missing(runtime, path, PLAN) == 0
    with (
        path.open("rb") as source,
        runtime_cache(module, source, autosave=False) as cache,
    ):
        assert cache.has_cache()


def test_a_pipe_is_written_where_it_is(device: Any, runtime: str, path: Path) -> None:
    module = make_module(runtime)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb") as sink:
        with runtime_cache(module, sink):
            run(module, PLAN)
        sink.close()
        path.write_bytes(source.read())
    assert kernels_missing(runtime, path, PLAN) == 0


def test_a_failing_stream_hides_no_exception(
    device: Any, runtime: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any, /) -> NoReturn:
            raise OSError("No space left on device")

    module = make_module(runtime)
    with pytest.raises(BlockError), runtime_cache(module, Full()):
        run(module, PLAN)
        raise BlockError
    assert "No space left on device" in caplog.text
    with pytest.raises(OSError, match="No space left"), runtime_cache(module, Full()):
        run(module, PLAN)
    assert cache_of(module) is None


def closed() -> io.BytesIO:
    stream = io.BytesIO()
    stream.close()
    return stream


def unwritable() -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO())


@pytest.mark.parametrize(
    ("place", "error", "text"),
    [
        (io.StringIO(), TypeError, "binary stream"),
        (3, TypeError, "is 3, of type int; expected a path or a binary stream"),
        (b"cache.bin", TypeError, "of type bytes; expected a path"),
        (None, TypeError, "of type NoneType; expected a path"),
        ("", ValueError, "path of a runtime cache is empty"),
        ("cache\0.bin", ValueError, "has a NUL in it"),
        ("cache\udcff.bin", ValueError, "is not valid UTF-8"),
        (closed(), ValueError, "closed file"),
        (unwritable(), ValueError, "can't be written to"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_wrong_place_changes_nothing(
    runtime: str, place: Any, error: type[Exception], text: str
) -> None:
    module = make_module(runtime)
    with pytest.raises(error, match=text), runtime_cache(module, place):
        pytest.fail("the block ran")
    assert module.runtime_settings == RuntimeSettings()
