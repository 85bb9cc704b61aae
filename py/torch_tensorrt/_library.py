"""Loads the C++ runtime, which registers `torch.classes.tensorrt` and `torch.ops.tensorrt`."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import torch

from torch_tensorrt._version import BUILT_FOR

LIBRARY_PATH = Path(__file__).parent / "lib" / "libtorchtrt_runtime.so"

# The minor versions of torch and tensorrt_rtx with which the test suite passed on a library that is
# built for the first pair. The library may load with other pairs and still fail.
TESTED_PAIRS = (
    ("2.15", "1.7"),
    ("2.15", "1.6"),
    ("2.14", "1.7"),
    ("2.14", "1.6"),
)


@cache
def library_error() -> ImportError | None:
    """Returns why the C++ runtime can't be used, or None if it can.

    The library may be missing, or not tested with the installed versions of torch and TensorRT-RTX.
    The first call loads it, or logs a warning if it can't. Later calls return the same.
    """
    error = _load()
    if error is not None:
        logging.getLogger("torch_tensorrt").warning(
            "The Python runtime takes the place of the C++ one: %s", error
        )
    return error


def _load() -> ImportError | None:
    try:
        # Loads the shared library that ours is linked to. Ours would not find it if pip installed
        # the packages into different folders. torch, imported above, loads its own libraries.
        import tensorrt_rtx
    except ImportError as error:
        return ImportError(f"{LIBRARY_PATH} needs tensorrt_rtx: {error}")
    installed = torch.__version__, tensorrt_rtx.__version__
    # A library that was built for another pair was tested only with that pair.
    tested = TESTED_PAIRS if TESTED_PAIRS[0] == BUILT_FOR else (BUILT_FOR,)
    if tuple(map(_minor_version, installed)) not in tested:
        return ImportError(
            f"{LIBRARY_PATH} was tested with {', '.join(map(_named, tested))}, "
            f"but not with {_named(installed)}"
        )
    try:
        torch.ops.load_library(LIBRARY_PATH)  # type: ignore[no-untyped-call]
    except OSError as error:
        return ImportError(
            f"{LIBRARY_PATH} can't be loaded with {_named(installed)}: {error}"
        )
    return None


def _minor_version(version: str) -> str:
    """Returns a text such as "2.15" for "2.15.0+cu130"."""
    return ".".join(version.split(".")[:2])


def _named(pair: tuple[str, str]) -> str:
    return "torch {} and tensorrt_rtx {}".format(*pair)
