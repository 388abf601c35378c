"""Chat pairs as token ids with the exact loss mask: the answer and its end token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archloop.corpus.pairs import read_rows
from archloop.errors import UsageError
from archloop.llm.chat_template import render_pair
from archloop.types import Message

IGNORED = -100
"""PyTorch's cross-entropy leaves these labels out."""


@dataclass(frozen=True)
class EncodedPair:
    """One sequence; ``labels`` are ``input_ids`` where the loss counts, else ``IGNORED``."""

    input_ids: list[int]
    labels: list[int]


def read_messages(corpus: Path) -> list[list[Message]]:
    """The ``messages`` of every row of a JSONL corpus.

    Raises:
        UsageError: Naming the file and line that is no chat row ending with the assistant.
    """
    rows = list(read_rows(corpus, _messages))
    if not rows:
        raise UsageError(f"{corpus}: the corpus is empty; nothing to fine-tune on")
    return rows


def _messages(row: Any) -> list[Message]:
    messages: list[Message] = row["messages"]
    if messages[-1]["role"] != "assistant":
        raise ValueError("last message is not the assistant's")
    if not all(isinstance(m["content"], str) for m in messages):
        raise ValueError("a message's content is not text")
    return messages


def encode_pair(tokenizer: Any, messages: Sequence[Message]) -> EncodedPair:
    """Tokenise one pair as in generation: the rendered prompt, then the answer.

    Prompt and answer are tokenised separately, as at generation time, where the LLM continues from
    the tokens of the prompt. Text that the template writes after the end token is left out.

    Raises:
        UsageError: The chat template refuses the messages.
    """
    prompt, answer = render_pair(tokenizer, messages)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return EncodedPair(prompt_ids + answer_ids, [IGNORED] * len(prompt_ids) + answer_ids)
