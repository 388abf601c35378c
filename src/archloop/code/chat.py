"""Networks as chat: render a pair, extract the code block of an answer (a round trip)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from archloop.types import ChatPair, Message

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


def make_pair(prompt: Sequence[Message], code: str, meta: Mapping[str, Any]) -> ChatPair:
    """A corpus row; its id is a hash of its content, so the same input gives the same row."""
    system, user = prompt
    answer: Message = {"role": "assistant", "content": render_code(code)}
    key = "\0".join((system["content"], user["content"], answer["content"]))
    return ChatPair(
        hashlib.sha256(key.encode()).hexdigest()[:32], (system, user, answer), dict(meta)
    )


def pair_from_json(row: Mapping[str, Any]) -> ChatPair:
    """A corpus row read back.

    Raises:
        ValueError: The row is not system, user and assistant messages with text, or its meta is no
            object.
    """
    messages: Any = row.get("messages")
    roles = [m.get("role") for m in messages] if isinstance(messages, list) else None
    if roles != ["system", "user", "assistant"]:
        raise ValueError(f"expected messages of system, user, assistant; got {roles}")
    if not all(isinstance(m.get("content"), str) for m in messages):
        raise ValueError("a message's content is not text")
    meta: Any = row.get("meta") or {}
    if not isinstance(meta, Mapping):
        raise ValueError(f"meta is no object but {meta!r}")
    system, user, assistant = messages
    fallback = hashlib.sha256("\0".join(m["content"] for m in messages).encode()).hexdigest()[:32]
    return ChatPair(str(row.get("id") or fallback), (system, user, assistant), dict(meta))
