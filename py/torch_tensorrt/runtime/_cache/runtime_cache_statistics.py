"""What a runtime cache has done. The twin of RuntimeCacheHandle::Statistics in C++."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RuntimeCacheStatistics:
    """What a cache has done since it was made, and the size of its contents.

    If `size_added` is about as large as `bytes_loaded`, the loaded kernels were compiled again.

    Attributes:
        bytes_loaded: Bytes loaded in total.
        loaded_from: The file loaded last; empty if none was.
        rejections: How often TensorRT-RTX rejected bytes.
        last_rejection: The message logged for the last one; empty if there was none.
        saves: Number of saves that wrote.
        checkpoints: Number of checkpoints that wrote.
        bytes_written: Bytes written by saves and checkpoints in total.
        merges: Number of merges with kernels that others had saved.
        conflicts: Number of writes that found the file changed.
        lock_wait: Seconds spent waiting for locks.
        size: Bytes of the contents now, 0 if there are no kernels.
        size_added: Bytes by which the contents have grown since they were loaded.
        last_save_time: When a save or checkpoint last wrote, in seconds since 1970; None if none
            has.
    """

    bytes_loaded: int = 0
    loaded_from: str = ""
    rejections: int = 0
    last_rejection: str = ""
    saves: int = 0
    checkpoints: int = 0
    bytes_written: int = 0
    merges: int = 0
    conflicts: int = 0
    lock_wait: float = 0.0
    size: int = 0
    size_added: int = 0
    last_save_time: float | None = None
