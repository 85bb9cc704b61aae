"""The runtime half of Torch-TensorRT for TensorRT-RTX.

It loads serialized engines, runs them from torch, and keeps the kernels that TensorRT-RTX compiles
at run time in a file that processes share. If the C++ runtime can't be loaded, a warning is logged
and the Python runtime is used instead.
"""

from torch_tensorrt import dynamo, logging, runtime
from torch_tensorrt._compile import compile, load
from torch_tensorrt._errors import UnsupportedOperatorError
from torch_tensorrt._library import library_error
from torch_tensorrt._version import __version__

__all__ = [
    "UnsupportedOperatorError",
    "__version__",
    "compile",
    "dynamo",
    "load",
    "logging",
    "runtime",
]

library_error()  # loads the library, which registers the C++ runtime's classes and ops with torch
