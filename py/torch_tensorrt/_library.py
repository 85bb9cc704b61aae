"""Loads the C++ runtime, which registers `torch.classes.tensorrt` and `torch.ops.tensorrt`."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import torch

LIBRARY_PATH = Path(__file__).parent / "lib" / "libtorchtrt_runtime.so"


@cache
def library_error() -> ImportError | None:
    """Why the C++ runtime can't be used, None if it can.

    The library is missing, or was built for another torch or TensorRT-RTX than those installed. The
    first call loads it, or warns that it can't; later ones answer the same.
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
    try:
        torch.ops.load_library(LIBRARY_PATH)  # type: ignore[no-untyped-call]
    except OSError as error:
        return ImportError(
            f"{LIBRARY_PATH} can't be loaded with torch {torch.__version__} and "
            f"tensorrt_rtx {tensorrt_rtx.__version__}: {error}"
        )
    return None
