"""An alias of `torchtrt_cache.info`. That module starts faster, because it does not import torch.

python -m torch_tensorrt.runtime.cache_info [--json] PATH...
"""

from __future__ import annotations

import sys

from torchtrt_cache import __main__ as _command
from torchtrt_cache.info import (
    CacheInfo,
    DirectoryInfo,
    KindInfo,
    LockInfo,
    TemporaryFileInfo,
    inspect,
)

__all__ = [
    "CacheInfo",
    "DirectoryInfo",
    "KindInfo",
    "LockInfo",
    "TemporaryFileInfo",
    "inspect",
    "main",
]


def main(arguments: list[str] | None = None) -> int:
    """Runs `torchtrt-cache info`. None means the process's arguments."""
    return _command.main(["info", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
