"""The runtime half of Torch-TensorRT for TensorRT-RTX.

It loads serialized engines, runs them from torch, and keeps the kernels that TensorRT-RTX compiles
at run time in a file that other processes share. Where the C++ runtime can't be loaded, the Python
runtime takes its place.
"""

import logging

from torch_tensorrt._library import library_error
from torch_tensorrt._version import __version__

__all__ = ["__version__"]

if (_error := library_error()) is not None:
    logging.getLogger(__name__).warning(
        "The Python runtime takes the place of the C++ one: %s", _error
    )
