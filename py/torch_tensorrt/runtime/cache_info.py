"""An alias of `torchtrt_cache.info`, which starts faster because it imports no torch."""

from __future__ import annotations

import sys

from torchtrt_cache.info import CacheInfo, LockInfo, TemporaryFileInfo, inspect, main

__all__ = ["CacheInfo", "LockInfo", "TemporaryFileInfo", "inspect", "main"]

if __name__ == "__main__":
    sys.exit(main())
