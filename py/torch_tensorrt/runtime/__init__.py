"""Runtime caches that processes share, and the settings of engines."""

from torch_tensorrt.runtime._cache.default_cache_path import default_runtime_cache_path
from torch_tensorrt.runtime._context_managers import runtime_cache, runtime_config
from torch_tensorrt.runtime._runtime_cache import RuntimeCache
from torch_tensorrt.runtime._runtime_settings import RuntimeSettings

__all__ = [
    "RuntimeCache",
    "RuntimeSettings",
    "default_runtime_cache_path",
    "runtime_cache",
    "runtime_config",
]
