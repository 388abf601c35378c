"""Which pairs of a corpus are held out to measure the dev loss.

The split depends on a pair's content only, so it stays the same as the corpus grows. Networks that
differ only in names and numbers (the most common near-duplicates) are on the same side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from archloop.code.chat import extract_code
from archloop.novelty.tokens import CodeTokenError, tokens
from archloop.types import Message

Messages = list[Message]


def split_dev(rows: Sequence[Messages], share: float) -> tuple[list[Messages], list[Messages]]:
    """Training and dev pairs, each in the order given; ``share`` of all (expected) are for dev."""
    train: list[Messages] = []
    dev: list[Messages] = []
    for messages in rows:
        (dev if _place(messages[-1]["content"]) < share else train).append(messages)
    return train, dev


def _place(answer: str) -> float:
    """A number in 0..1 derived from a network's code, uniformly distributed over networks."""
    code = extract_code(answer)
    try:
        text = answer if code is None else " ".join(tokens(code, "normalized"))
    except CodeTokenError:
        text = answer
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16) / 16**15
