"""Where an engine's inferences run; the twin of core/runtime/EngineStream.h."""

from __future__ import annotations

import torch


class EngineStream:
    """torch's current stream, or, where that is the default one, a stream of the engine's own.

    On the default stream each inference costs a synchronization, and CUDA can't capture it for the
    graphs that TensorRT-RTX makes by itself. The two streams wait for each other. Inferences run
    one after another, on whichever streams.

    One object in one thread at a time, with the device current.

    Args:
        device: A CUDA device with its index, or a CPU, which has no streams.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._own: torch.cuda.Stream | None = None
        # Of the inference that began, unless it is captured.
        self._current: torch.cuda.Stream | None = None
        self._last_stream: torch.cuda.Stream | None = None
        self._current_is_ready: torch.cuda.Event | None = None
        self._last_inference: torch.cuda.Event | None = None  # its end

    def is_capturing(self) -> bool:
        """Whether the current stream is being captured in a CUDA graph."""
        return self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def begin(self) -> int:
        """What to give to `execute_async_v3`; 0 on a CPU.

        The inference will wait for what the current stream has to do, and for the inference before.
        While capturing nothing is waited for, since that would tie the graph to what is outside of
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
        """To be called once the inference that began is enqueued, or failed to be.

        The current stream waits for it.
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
        """Waits for the last inference on the host."""
        if self._last_inference is not None:
            self._last_inference.synchronize()
