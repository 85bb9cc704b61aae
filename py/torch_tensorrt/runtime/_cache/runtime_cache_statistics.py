"""What a runtime cache did; the twin of RuntimeCacheHandle::Statistics in C++."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RuntimeCacheStatistics:
    """What a cache did since it was made, and what it has now.

    If `size_added` is about `bytes_loaded`, the loaded kernels were compiled again.

    Attributes:
        bytes_loaded: By all loads together.
        loaded_from: The file that was loaded last; empty if none was.
        rejections: How often TensorRT-RTX rejected bytes.
        last_rejection: What was logged then; empty if there was none.
        saves: Saves that wrote.
        checkpoints: Checkpoints that wrote.
        bytes_written: By both together.
        merges: How often what others had saved was merged with what was to be saved.
        conflicts: Writes that found the file changed.
        lock_wait: Seconds spent on waiting for locks.
        size: Bytes of the contents now, 0 if there are no kernels.
        size_added: By how many bytes they grew since they were loaded.
        last_save_time: When a save or checkpoint wrote last, in seconds since 1970; None if none
            did.
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
