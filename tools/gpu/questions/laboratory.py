"""Where questions are asked, and what their answers are made into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from tools.gpu.names import CACHE_STEP
from tools.gpu.questions import engines
from tools.gpu.questions.devices import Device
from tools.gpu.questions.workers import Worker
from tools.gpu.report import Row, Status


@dataclass
class Laboratory:
    """Where questions are asked.

    Attributes:
        device: Each worker installs it.
        folder: For files, which stay there. Empty at first.
        foreign_caches: Serialized caches of other machines or versions, by what they are.
    """

    device: Device
    folder: Path
    foreign_caches: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(self.folder.iterdir()):
            # A cache of an earlier run would make a cold start warm.
            raise ValueError(f"{self.folder} must be empty")
        self._numbers = count()

    def worker(self, log_level: str = "warning") -> Worker:
        """A process with the device, before whose first call all is imported."""
        return Worker(
            self.new_path("log"),
            self.device.wants_fresh_workers,
            engines.begin,
            self.device,
            log_level,
        )

    def raw_run(self, name: str, blobs: Sequence[bytes] = ()) -> engines.RawRun:
        """engines.raw_run in a process of its own.

        Whether TensorRT-RTX keeps compiled kernels in an engine or a process is not documented.
        """
        with self.worker() as worker:
            return worker(engines.raw_run, name, blobs)

    def new_path(self, suffix: str) -> Path:
        """Of a file that there is not yet."""
        return self.folder / f"{next(self._numbers)}.{suffix}"


Question = Callable[[Laboratory], list[Row]]


def row(
    question: str,
    answer: str,
    as_designed: bool,
    figure: str = "",
    how: str = "",
    **details: object,
) -> Row:
    status = Status.ANSWER if as_designed else Status.CONTRADICTION
    return Row(CACHE_STEP, question, status, answer, figure, how, dict(details))
