"""Formats names, sizes and times for people to read."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escapes what a terminal would obey, because others choose the names of files."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def size_text(size: int) -> str:
    text = f"{size:,} bytes"
    return text if size < 1_000_000 else f"{text} ({size / 1e6:,.1f} MB)"


def age_text(seconds: float) -> str:
    if seconds < 0:
        return "in the future"
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"
