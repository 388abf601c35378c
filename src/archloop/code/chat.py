"""Networks as chat: render a pair, extract the code block of an answer (a round trip)."""

from __future__ import annotations

import hashlib
import re

_OPEN = re.compile(r"^[ \t]*```[ \t]*([A-Za-z0-9_+-]*)[ \t]*\r?$", re.MULTILINE)
_CLOSE = re.compile(r"^[ \t]*```[ \t]*\r?$", re.MULTILINE)
_PYTHON = frozenset({"", "python", "python3", "py"})


def render_code(code: str) -> str:
    """The assistant's answer: exactly one fenced Python block."""
    return f"```python\n{code.strip()}\n```"


def extract_code(answer: str) -> str | None:
    """The code of the first Python block that defines ``Net``, else of the first Python block.

    A block without a closing fence (an answer cut at the token limit) counts to its end; an answer
    without a fence has no code.
    """
    blocks: list[str] = []
    position = 0
    while opening := _OPEN.search(answer, position):
        closing = _CLOSE.search(answer, opening.end())
        end = closing.start() if closing else len(answer)
        if opening[1].lower() in _PYTHON:
            blocks.append(answer[opening.end() : end].strip("\r\n"))
        position = closing.end() if closing else len(answer)
    blocks = [block.replace("\r\n", "\n") for block in blocks if block.strip()]
    return next((block for block in blocks if "class Net" in block), blocks[0] if blocks else None)


def code_sha256(code: str) -> str:
    """Hex SHA-256 of a network's source."""
    return hashlib.sha256(code.encode()).hexdigest()
