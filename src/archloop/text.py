"""Text of others, a candidate's above all, made fit for a row, a file or a page."""

from __future__ import annotations

MAX_ERROR = 300
"""Characters of an error line."""
_MARKDOWN = frozenset("\\`*_[]<>|#!&~")


def one_line(text: str) -> str:
    """Printable, on one line, at most :data:`MAX_ERROR` characters."""
    return "".join(c if c.isprintable() else " " for c in text[: 4 * MAX_ERROR])[:MAX_ERROR]


def encodable(text: str) -> str:
    """With a question mark for what UTF-8 cannot hold, such as half a character."""
    return text.encode("utf-8", "replace").decode()


def as_markdown(text: str) -> str:
    """One line that Markdown shows as it is, in a table too."""
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in " ".join(text.split()))


def printable(text: str) -> str:
    """Lines and tabs kept, everything else that is no printable character left out."""
    return "".join(c for c in text.replace("\r", "\n") if c.isprintable() or c in "\n\t")
