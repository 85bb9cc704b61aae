"""Settings and caches that hold for a block."""

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

    Each engine keeps its other settings. Blocks may be nested: the inner one wins. The very caches
    that were in use before are so again afterwards, also if the block raises. A decorator too.

    Args:
        target_or_targets: a module, or an iterable of modules. The engines are the
            `TorchTensorRTModule`s and `PythonTorchTensorRTModule`s among them and their submodules
            when the block begins, each once.
        **overrides: fields of `RuntimeSettings`.

    Raises:
        ValueError: there is no engine under a target, the cache is one of the other runtime, or as
            `RuntimeSettings`.
        TypeError: a target is no module, or as `RuntimeSettings.merge`.
        After any of them all engines have the settings from before.

    Thread safety: other threads may run the engines meanwhile, but not change their settings.
    """
    modules = _engine_modules(target_or_targets)
    with ExitStack() as stack:
        for module in modules:
            settings = module.runtime_settings
            # First, so that a module whose new settings fail half-way is put back too.
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

    A file that can't be loaded costs a warning and a cold start. The save follows once the engines
    have their own settings back and none compiles in the background for this cache any more. It
    also happens if the block raises; what then goes wrong with it is logged, and the block's
    exception goes on. Blocks may be nested: the inner one wins. A decorator too.

    Args:
        target_or_targets: as for `runtime_config`; all engines of one runtime, C++ or Python.
        path_or_stream: the path of a file or directory, or a URL, shared with others as a
            `RuntimeCache`'s is; or a binary stream. A directory's file for this kind of machine is
            loaded by the first engine that runs, whose device tells the kind. A stream that can be
            read is loaded from its position to its end. If it can also be sought, it stands at that
            position again in the block and after it, and the save replaces all from there on; else
            the save is written at the stream's position. A save without bytes leaves a stream
            alone.
        autosave: whether to save.

    Yields:
        The cache. It may be used after the block.

    Raises:
        ValueError: there is no engine under a target, the engines are of both runtimes, the path
            can be no file's or is not valid UTF-8, or the stream is closed or, with `autosave`,
            can't be written to.
        TypeError: a target is no module, or `path_or_stream` neither a path nor a binary stream.
        RuntimeError: the file could not be saved, after a block that did not raise.
        OSError: the stream could not be read, before the block, or written, after it.

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
            logger.warning("While an exception left the block: %s", failure)
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
            "Python runtime, and a cache belongs to one of the two; a runtime_cache for each may "
            "have the same path"
        )
    return number > 0


def _load_or_warn(cache: RuntimeCache) -> None:
    try:
        cache.load()
    except Exception as error:
        logger.warning(
            "The engines start without what is in their runtime cache: %s", error
        )


def _load_from_stream(
    cache: RuntimeCache, stream: Any, autosave: bool
) -> Callable[[], None]:
    """Loads the cache if the stream can be read, and returns what saves it."""
    if isinstance(stream, io.TextIOBase) or not hasattr(stream, "readable"):
        raise TypeError(
            f"The place of the runtime cache is {stream!r}, of type {type(stream).__name__}; "
            "expected a path or a binary stream"
        )
    if autosave and not stream.writable():
        raise ValueError(f"{stream!r} can't be written to, as autosave=True asks")
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
