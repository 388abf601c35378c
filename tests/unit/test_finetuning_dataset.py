"""The exact split of masked tokens, on the real tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from archloop.config import LLMConfig
from archloop.corpus.pairs import make_pair
from archloop.errors import UsageError
from archloop.llm.finetuning.dataset import IGNORED, encode_pair, read_messages
from archloop.llm.models import resolve_model
from archloop.search.prompts import CIFAR10, PromptTemplate

pytestmark = pytest.mark.llm
CODE = "import torch\n\nclass Net:\n    x = 1"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve_model(LLMConfig()))


@pytest.fixture
def messages() -> list[dict[str, str]]:
    pair = make_pair(PromptTemplate().render(CIFAR10, 500_000), CODE, {})
    return [dict(m) for m in pair.messages]


def test_the_loss_counts_the_answer_and_its_end_token_only(
    tokenizer: Any, messages: list[dict[str, str]]
) -> None:
    encoded = encode_pair(tokenizer, messages)
    counted = [t for t, label in zip(encoded.input_ids, encoded.labels, strict=True) if label >= 0]
    assert tokenizer.decode(counted) == f"```python\n{CODE}\n```{tokenizer.eos_token}"
    assert counted[-1] == tokenizer.eos_token_id
    masked = encoded.input_ids[: encoded.labels.count(IGNORED)]
    assert encoded.labels == [IGNORED] * len(masked) + counted


def test_the_masked_tokens_are_the_prompt_as_generation_renders_it(
    tokenizer: Any, messages: list[dict[str, str]]
) -> None:
    encoded = encode_pair(tokenizer, messages)
    prompt = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert encoded.input_ids[: encoded.labels.count(IGNORED)] == list(prompt)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff", "'utf-8' codec"),
        (b"[" * 100_000, "maximum recursion depth"),
        ('{"messages": [{"role": "assistant", "content": 5}]}', "content is not text"),
        ("{", "not a chat row"),
        ('{"text": 1}', "not a chat row"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "last message"),
    ],
)
def test_a_bad_corpus_row_is_named(tmp_path: Path, line: str | bytes, reason: str) -> None:
    corpus = tmp_path / "corpus.jsonl"
    good = '{"messages": [{"role": "assistant", "content": "x"}]}'
    corpus.write_bytes(f"{good}\n".encode() + (line.encode() if isinstance(line, str) else line))
    with pytest.raises(UsageError, match=rf"corpus\.jsonl:2.*{reason}"):
        read_messages(corpus)


@pytest.mark.parametrize(("text", "reason"), [(None, "no such"), ("", "empty")])
def test_a_missing_or_empty_corpus_is_named(tmp_path: Path, text: str | None, reason: str) -> None:
    corpus = tmp_path / "corpus.jsonl"
    if text is not None:
        corpus.write_text(text)
    with pytest.raises(UsageError, match=reason):
        read_messages(corpus)
