"""Text from a candidate, made fit for a row."""

from __future__ import annotations

MAX_ERROR = 300
"""Characters of an error line."""


def one_line(text: str) -> str:
    """Printable, on one line, at most :data:`MAX_ERROR` characters."""
    return "".join(c if c.isprintable() else " " for c in text[: 4 * MAX_ERROR])[:MAX_ERROR]


def printable(text: str) -> str:
    """Lines and tabs kept, everything else that is no printable character left out."""
    return "".join(c for c in text.replace("\r", "\n") if c.isprintable() or c in "\n\t")
