"""The stream for an engine's inferences. The twin of core/runtime/EngineStream.h."""

from __future__ import annotations

import torch


class EngineStream:
    """The stream for an engine's inferences, which run one after another.

    It is torch's current stream, unless that is the default stream. On the default stream, each
    inference costs a synchronization, and CUDA can't capture it for the graphs that TensorRT-RTX
    itself makes. Inferences then run on a stream of the engine's own, and the two streams wait for
    each other.

    Thread safety: one thread per object at a time (external synchronization), with the device
    current.

    Args:
        device: A CUDA device with an index, or a CPU. A CPU has no streams, so nothing waits there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._own: torch.cuda.Stream | None = None
        # Set at begin(), until end(). None during a capture.
        self._current: torch.cuda.Stream | None = None
        self._last_stream: torch.cuda.Stream | None = None
        self._current_is_ready: torch.cuda.Event | None = None
        self._last_inference: torch.cuda.Event | None = None  # its end

    def is_capturing(self) -> bool:
        """Whether the current stream is being captured in a CUDA graph."""
        return self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def begin(self) -> int:
        """Returns the stream for `execute_async_v3`, or 0 on a CPU.

        The inference will wait for the work on the current stream and for the previous inference.
        During a capture it waits for nothing, because a wait would tie the graph to work outside
        it.
        """
        if self._device.type != "cuda":
            return 0
        current = torch.cuda.current_stream(self._device)
        if self.is_capturing():
            self._current = None
            return int(current.cuda_stream)
        stream = current
        if current == torch.cuda.default_stream(self._device):
            if self._own is None or self._current_is_ready is None:
                self._own = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                self._current_is_ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            stream = self._own
            self._current_is_ready.record(current)
            stream.wait_event(self._current_is_ready)
        if self._last_inference is not None and self._last_stream != stream:
            stream.wait_event(self._last_inference)
        self._current, self._last_stream = current, stream
        return int(stream.cuda_stream)

    def end(self) -> None:
        """Must be called once the inference is enqueued or could not be enqueued.

        Makes the current stream wait for the inference.
        """
        if self._current is None or self._last_stream is None:
            return
        if self._last_inference is None:
            self._last_inference = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._last_inference.record(self._last_stream)
        if self._last_stream != self._current:
            self._current.wait_event(self._last_inference)
        self._current = None

    def synchronize(self) -> None:
        """Blocks the calling thread until the last inference has ended."""
        if self._last_inference is not None:
            self._last_inference.synchronize()
