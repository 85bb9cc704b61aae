"""The error classes of this package."""

from __future__ import annotations

import re
from collections.abc import Sequence


class UnsupportedOperatorError(RuntimeError):
    """A module has operators that can't become part of an engine. The message says where.

    Attributes:
        operators: The names of the operators: torch's name if the exporter to ONNX does not know
            the operator, such as "aten.special_airy_ai.default", otherwise ONNX's, such as "Det".
    """

    def __init__(self, message: str, operators: Sequence[str]) -> None:
        super().__init__(message, tuple(operators))
        self.operators = tuple(operators)

    def __str__(self) -> str:
        return str(self.args[0])


def message_of(error: BaseException) -> str:
    """Returns the error's text without the source location that the C++ runtime puts first."""
    return re.sub(r"^\[Error thrown at [^]]*\] ", "", str(error))
