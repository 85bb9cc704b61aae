"""Runtime caches that processes share, and the settings of engines."""

from torch_tensorrt.runtime._cache.default_cache_path import default_runtime_cache_path
from torch_tensorrt.runtime._cache.runtime_cache_statistics import (
    RuntimeCacheStatistics,
)
from torch_tensorrt.runtime._context_managers import runtime_cache, runtime_config
from torch_tensorrt.runtime._runtime_cache import RuntimeCache
from torch_tensorrt.runtime._runtime_settings import RuntimeSettings
from torch_tensorrt.runtime._save_on_signal import save_on_signal

__all__ = [
    "RuntimeCache",
    "RuntimeCacheStatistics",
    "RuntimeSettings",
    "default_runtime_cache_path",
    "runtime_cache",
    "runtime_config",
    "save_on_signal",
]
