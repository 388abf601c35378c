"""Cleans untrusted text, such as a candidate's error, for a row, a file or a page."""

from __future__ import annotations

MAX_ERROR = 300
"""Most characters of an error line."""
_MARKDOWN = frozenset("\\`*_[]<>|#!&~")


def one_line(text: str) -> str:
    """The text on one line, without control characters, at most :data:`MAX_ERROR` characters."""
    return "".join(c if c.isprintable() else " " for c in text[: 4 * MAX_ERROR])[:MAX_ERROR]


def encodable(text: str) -> str:
    """The text with a question mark for characters that UTF-8 cannot encode, such as surrogates."""
    return text.encode("utf-8", "replace").decode()


def as_markdown(text: str) -> str:
    """The text on one line, escaped for Markdown, also in tables."""
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in " ".join(text.split()))


def printable(text: str) -> str:
    """The text without control characters other than newlines and tabs."""
    return "".join(c for c in text.replace("\r", "\n") if c.isprintable() or c in "\n\t")


def visible(text: str) -> str:
    """The text with control characters other than newlines and tabs as escapes."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode()
        for c in text.replace("\r\n", "\n")
    )


def bytes_in_words(n: int) -> str:
    """A number of bytes in the largest unit that it fills, ``1.5 MiB``."""
    size, units = float(n), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"
