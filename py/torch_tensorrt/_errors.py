"""The errors of this package that are classes of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence


class UnsupportedOperatorError(RuntimeError):
    """A module has operators that can't become part of an engine; the text says where.

    Attributes:
        operators: their names: torch's where the exporter to ONNX knows none for it, as in
            "aten.special_airy_ai.default", else ONNX's, as in "Det".
    """

    def __init__(self, message: str, operators: Sequence[str]) -> None:
        super().__init__(message, tuple(operators))
        self.operators = tuple(operators)

    def __str__(self) -> str:
        return str(self.args[0])


def message_of(error: BaseException) -> str:
    """Its text, without the place in the source with which those of the C++ runtime begin."""
    return re.sub(r"^\[Error thrown at [^]]*\] ", "", str(error))
