"""Chat pairs as token ids with the exact loss mask: the answer and its end token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archloop.corpus.pairs import read_rows
from archloop.errors import UsageError

IGNORED = -100
"""PyTorch's cross-entropy leaves these labels out."""


@dataclass(frozen=True)
class EncodedPair:
    """One sequence; ``labels`` are ``input_ids`` where the loss counts, else ``IGNORED``."""

    input_ids: list[int]
    labels: list[int]


def read_messages(corpus: Path) -> list[list[dict[str, str]]]:
    """The ``messages`` of every row of a JSONL corpus.

    Raises:
        UsageError: Naming the file and line that is no chat row ending with the assistant.
    """
    rows = list(read_rows(corpus, _messages))
    if not rows:
        raise UsageError(f"{corpus}: the corpus is empty; nothing to fine-tune on")
    return rows


def _messages(row: Any) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = row["messages"]
    if messages[-1]["role"] != "assistant":
        raise ValueError("last message is not the assistant's")
    if not all(isinstance(m["content"], str) for m in messages):
        raise ValueError("a message's content is not text")
    return messages


def encode_pair(tokenizer: Any, messages: Sequence[dict[str, str]]) -> EncodedPair:
    """Tokenise one pair as in generation: the rendered prompt, then the answer.

    Prompt and answer are tokenised separately, as at generation time, where the LLM continues from
    the tokens of the prompt. Text that the template writes after the end token is left out.

    Raises:
        UsageError: The chat template renders the prompt differently when an answer follows.
    """
    prompt = tokenizer.apply_chat_template(
        list(messages[:-1]), tokenize=False, add_generation_prompt=True
    )
    whole = tokenizer.apply_chat_template(list(messages), tokenize=False)
    if not whole.startswith(prompt):
        raise UsageError("the LLM's chat template changes the prompt when an answer is added")
    head, end, _ = whole[len(prompt) :].rpartition(tokenizer.eos_token)
    if not end:
        head, end = whole[len(prompt) :].rstrip("\n"), tokenizer.eos_token
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(head + end, add_special_tokens=False)["input_ids"]
    return EncodedPair(prompt_ids + answer_ids, [IGNORED] * len(prompt_ids) + answer_ids)
