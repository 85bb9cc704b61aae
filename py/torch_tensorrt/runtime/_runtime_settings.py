"""The run-time settings of an engine."""

# A path is not normalized, which pathlib would do.
# ruff: noqa: PTH109, PTH117, PTH118

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Any

from torch_tensorrt.runtime._cache.checked_path import checked_place
from torch_tensorrt.runtime._runtime_cache import RuntimeCache
from torchtrt_cache.cache_url import is_url

# In order of TensorRT-RTX's own values.
DYNAMIC_SHAPES_KERNEL_SPECIALIZATION_STRATEGIES = ("lazy", "eager", "none")
CUDA_GRAPH_STRATEGIES = ("disabled", "whole_graph_capture")


@dataclass(frozen=True)
class RuntimeSettings:
    """How an engine runs. The same engine may run with other settings later.

    Two settings are equal, and have the same hash, if their strategies are equal and their caches
    are the same object or the same path. Immutable, and therefore thread-safe.

    Attributes:
        dynamic_shapes_kernel_specialization_strategy: When TensorRT-RTX compiles kernels for one
            shape of an engine with dynamic shapes. "lazy": in the background, while kernels that
            fit any shape run. "eager": before the first inference with the shape. "none": never.
        cuda_graph_strategy: Whether TensorRT-RTX itself runs inferences as CUDA graphs. "disabled":
            no. "whole_graph_capture": one graph of the whole engine per shape, where TensorRT-RTX
            can capture it.
        runtime_cache: Where compiled kernels are kept. A `RuntimeCache` may be shared by any number
            of engines. A path means this process's cache for it, which is shared by all engines
            that name it and saved when the last of them lets it go (see `RuntimeCache`). None means
            that kernels are not kept. A path may be that of a directory, which has one file per
            kind of machine, or a URL such as `s3://BUCKET/PREFIX/`. A path is kept as an absolute
            str: the working directory is put before it, and nothing is normalized. A URL is kept in
            its shortest form.

    Raises:
        ValueError: A strategy is unknown, in which case the message lists the known ones. Or a path
            is empty, contains a NUL character, is not valid UTF-8, or is not the URL of a cache.
        TypeError: A value has another type.
        OSError: The path is relative and the working directory is gone.
    """

    dynamic_shapes_kernel_specialization_strategy: str = "lazy"
    cuda_graph_strategy: str = "disabled"
    runtime_cache: RuntimeCache | str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        _check_strategy(
            "dynamic_shapes_kernel_specialization_strategy",
            self.dynamic_shapes_kernel_specialization_strategy,
            DYNAMIC_SHAPES_KERNEL_SPECIALIZATION_STRATEGIES,
        )
        _check_strategy(
            "cuda_graph_strategy", self.cuda_graph_strategy, CUDA_GRAPH_STRATEGIES
        )
        object.__setattr__(self, "runtime_cache", _checked_cache(self.runtime_cache))

    def merge(self, **overrides: Any) -> RuntimeSettings:
        """Returns these settings with the named ones replaced.

        Raises:
            TypeError: A name is unknown, in which case the message lists the known ones. Or as the
                constructor.
            ValueError: As the constructor.
        """
        names = [field.name for field in fields(self)]
        for name in overrides:
            if name not in names:
                raise TypeError(
                    f"Unknown runtime setting '{name}', expected {_one_of(names)}"
                )
        return replace(self, **overrides)


def check_settings(settings: object) -> None:
    """Raises TypeError unless these are RuntimeSettings."""
    if not isinstance(settings, RuntimeSettings):
        raise TypeError(
            f"The runtime settings are {settings!r}, of type {type(settings).__name__}; expected "
            "RuntimeSettings"
        )


def _one_of(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _check_strategy(setting: str, value: object, known: tuple[str, ...]) -> None:
    expected = f"expected {_one_of([repr(name) for name in known])}"
    if not isinstance(value, str):
        raise TypeError(
            f"The runtime setting {setting} is {value!r}, of type {type(value).__name__}; "
            f"{expected}"
        )
    if value not in known:
        raise ValueError(f"The runtime setting {setting} is {value!r}, {expected}")


def _checked_cache(value: object) -> RuntimeCache | str | None:
    if value is None:
        return None
    if isinstance(value, (str, os.PathLike)):
        place = checked_place(value)
        return place if is_url(place) else _absolute(place)
    if isinstance(value, RuntimeCache):
        return value
    raise TypeError(
        f"The runtime setting runtime_cache is {value!r}, of type {type(value).__name__}; "
        "expected a RuntimeCache, a path or None"
    )


def _absolute(path: str) -> str:
    if os.path.isabs(path):
        return path
    try:
        return os.path.join(os.getcwd(), path)
    except OSError as error:
        text = f"Can't make the path '{path}' of a runtime cache absolute"
        raise OSError(error.errno, f"{text}: {error.strerror}") from error
