"""Loads the C++ runtime, which registers `torch.classes.tensorrt` and `torch.ops.tensorrt`."""

from __future__ import annotations

from pathlib import Path

# Both load the shared libraries that ours is linked to. Their being there already makes ours load
# also where pip put the packages into different folders, and its run path leads nowhere.
import tensorrt_rtx
import torch

LIBRARY_PATH = Path(__file__).parent / "lib" / "libtorchtrt_runtime.so"


def load_library() -> None:
    """Registers the C++ runtime's classes and ops with torch; a second call does nothing.

    Raises:
        ImportError: the library is missing, or was built for another torch or TensorRT-RTX than
            those installed.
    """
    try:
        torch.ops.load_library(LIBRARY_PATH)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"{LIBRARY_PATH} can't be loaded with torch {torch.__version__} and "
            f"tensorrt_rtx {tensorrt_rtx.__version__}: {error}"
        ) from error
