"""Context managers for the settings and caches of engines."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import torch

from torch_tensorrt.runtime._cache.checked_path import checked_place
from torch_tensorrt.runtime._engine.engine_module import EngineModule
from torch_tensorrt.runtime._runtime_cache import RuntimeCache
from torchtrt_cache.cache_url import is_url
from torchtrt_cache.kinds import is_directory

logger = logging.getLogger(__name__)

Targets = torch.nn.Module | Iterable[torch.nn.Module]


@contextmanager
def runtime_config(target_or_targets: Targets, **overrides: Any) -> Iterator[None]:
    """Runs the engines under the targets with other settings, and restores theirs afterwards.

        with runtime_config(model, cuda_graph_strategy="whole_graph_capture"):
            model(x)

    Each engine keeps its other settings. Blocks may be nested: the inner one wins. Afterwards the
    engines use the same cache objects as before, even if the block raises. After an error all
    engines have their previous settings. Also works as a decorator.

    Args:
        target_or_targets: A module, or an iterable of modules. The engines are the
            `TorchTensorRTModule`s and `PythonTorchTensorRTModule`s among them and their submodules
            when the block begins, each once.
        **overrides: Fields of `RuntimeSettings`.

    Raises:
        ValueError: There is no engine under a target, the cache belongs to the other runtime, or as
            `RuntimeSettings`.
        TypeError: A target is not a module, or as `RuntimeSettings.merge`.

    Thread safety: other threads may run the engines meanwhile, but not change their settings.
    """
    modules = _engine_modules(target_or_targets)
    with ExitStack() as stack:
        for module in modules:
            settings = module.runtime_settings
            # Registered first, so that a module whose new settings fail half-way is restored too.
            stack.callback(setattr, module, "runtime_settings", settings)
            module.runtime_settings = settings.merge(**overrides)
        yield


@contextmanager
def runtime_cache(
    target_or_targets: Targets,
    path_or_stream: str | os.PathLike[str] | BinaryIO,
    autosave: bool = True,
) -> Iterator[RuntimeCache]:
    """Runs the engines under the targets on one cache, loaded before and saved once afterwards.

        with runtime_cache(model, "/var/cache/model.bin") as cache:
            model(x)

    If the file can't be loaded, logs a warning and starts with an empty cache. The cache is saved
    once the engines have their own settings back and none of them compiles in the background for
    this cache. It is also saved if the block raises. A failure of that save is logged, and the
    block's exception propagates. Blocks may be nested: the inner one wins. Also works as a
    decorator.

    Args:
        target_or_targets: As for `runtime_config`. All engines must be of one runtime, C++ or
            Python.
        path_or_stream: The path of a file or directory, or a URL, which processes share as they
            share that of a `RuntimeCache`. Or a binary stream. The file in a directory for this
            kind of machine is loaded by the first engine that runs, because its device determines
            the kind. A readable stream is loaded from its position to its end. If it is also
            seekable, its position is the same again in the block and after it, and the save
            replaces everything from there on. Otherwise the save is written at the stream's
            position. A save without bytes leaves a stream unchanged.
        autosave: Whether to save.

    Yields:
        The cache. It may be used after the block.

    Raises:
        ValueError: There is no engine under a target, the engines are of both runtimes, the path
            can't be that of a file or is not valid UTF-8, or the stream is closed or, with
            `autosave`, not writable.
        TypeError: A target is not a module, or `path_or_stream` is neither a path nor a binary
            stream.
        RuntimeError: The file could not be saved, after a block that did not raise.
        OSError: The stream could not be read before the block, or written after it.

    Thread safety: as `runtime_config`.
    """
    modules = _engine_modules(target_or_targets)
    use_python_runtime = not _is_cpp_runtime(modules)
    save: Callable[[], object]
    if isinstance(path_or_stream, (str, os.PathLike)):
        path = checked_place(path_or_stream)
        cache = RuntimeCache(path, use_python_runtime=use_python_runtime)
        if not (is_url(path) or is_directory(path)):
            _load_or_warn(cache)
        save = cache.save
    else:
        cache = RuntimeCache(use_python_runtime=use_python_runtime)
        save = _load_from_stream(cache, path_or_stream, autosave)

    attached = ExitStack()
    attached.enter_context(runtime_config(modules, runtime_cache=cache))

    def finish() -> None:
        try:
            attached.close()
        finally:
            if autosave:
                save()

    try:
        yield cache
    except BaseException:
        try:
            finish()
        except Exception as failure:
            logger.warning("After an exception in the block: %s", failure)
        raise
    finish()


def _engine_modules(target_or_targets: object) -> list[EngineModule]:
    is_one = isinstance(target_or_targets, torch.nn.Module)  # some are iterable too
    if is_one or not isinstance(target_or_targets, Iterable):
        targets = [target_or_targets]
    else:
        targets = list(target_or_targets)
    if not targets:
        raise ValueError("There are no targets, expected at least one torch.nn.Module")
    engines: dict[EngineModule, None] = {}  # an ordered set
    for target in targets:
        if not isinstance(target, torch.nn.Module):
            raise TypeError(
                f"A target is {target!r}, of type {type(target).__name__}; expected a "
                "torch.nn.Module or an iterable of them"
            )
        found = [m for m in target.modules() if isinstance(m, EngineModule)]
        if not found:
            raise ValueError(
                f"There is no engine under the target {type(target).__name__}, expected a "
                "TorchTensorRTModule or PythonTorchTensorRTModule, or a module that has one"
            )
        engines.update(dict.fromkeys(found))
    return list(engines)


def _is_cpp_runtime(modules: list[EngineModule]) -> bool:
    number = sum(module.is_cpp_runtime() for module in modules)
    if 0 < number < len(modules):
        raise ValueError(
            f"{number} of the engines run on the C++ runtime and {len(modules) - number} on the "
            "Python runtime, and a cache serves only one of the two; use a runtime_cache for each, "
            "which may have the same path"
        )
    return number > 0


def _load_or_warn(cache: RuntimeCache) -> None:
    try:
        cache.load()
    except Exception as error:
        logger.warning(
            "The engines start without the kernels of their runtime cache: %s", error
        )


def _load_from_stream(
    cache: RuntimeCache, stream: Any, autosave: bool
) -> Callable[[], None]:
    """Loads the cache if the stream can be read, and returns a function that saves it."""
    if isinstance(stream, io.TextIOBase) or not hasattr(stream, "readable"):
        raise TypeError(
            f"The place of the runtime cache is {stream!r}, of type {type(stream).__name__}; "
            "expected a path or a binary stream"
        )
    if autosave and not stream.writable():
        raise ValueError(f"{stream!r} can't be written to, as autosave=True requires")
    start = None
    if stream.readable():
        start = stream.tell() if stream.seekable() else None
        cache.load_from_stream(stream)
        if start is not None:
            stream.seek(start)

    def save() -> None:
        if start is None:
            cache.save_to_stream(stream)
        else:
            stream.seek(start)
            if cache.save_to_stream(stream) > 0:
                stream.truncate()
            stream.seek(start)
        stream.flush()

    return save
