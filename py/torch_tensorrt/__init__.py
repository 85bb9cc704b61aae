"""The runtime of Torch-TensorRT for TensorRT-RTX.

Importing it loads the C++ runtime, after which `torch.classes.tensorrt.RuntimeCacheHandle(path)`
reads and writes a runtime cache that other processes share.
"""

from torch_tensorrt._library import load_library
from torch_tensorrt._version import __version__

__all__ = ["__version__"]

load_library()
