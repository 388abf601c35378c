"""Chat templates: that of base LLMs, those without a system role, those that raise."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from archloop.errors import UsageError
from archloop.llm.chat_template import DEFAULT, render_pair, render_prompt
from archloop.llm.finetuning.dataset import encode_pair
from archloop.llm.generation.language_model import ChatTokenizer
from archloop.llm.models import load_tokenizer
from archloop.types import Message
from tiny_llm import CHAT, SYSTEM_REFUSED, make_tokenizer, random_llm

ASKED: list[Message] = [
    {"role": "system", "content": "You design networks.\n"},
    {"role": "user", "content": "Write one."},
]
ANSWER: Message = {"role": "assistant", "content": "```python\nx = 1\n```"}
DROPPED = CHAT.replace("for m in messages", "for m in messages if m.role != 'system'")
"""Leaves the system's text out, without a word."""
THINKS = CHAT.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
"""Begins an answer in another way than it renders one."""


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llm(tmp_path_factory.mktemp("llm"))


def with_template(template: str | None) -> Any:
    tokenizer = make_tokenizer(["import torch", "You design networks."])
    tokenizer.chat_template = template
    return tokenizer


def test_the_template_for_base_llms_is_plain_text() -> None:
    prompt, answer = render_pair(with_template(DEFAULT), [*ASKED, ANSWER])
    assert prompt == (
        "### System:\nYou design networks.\n\n\n### User:\nWrite one.\n\n### Assistant:\n"
    )
    assert answer == "```python\nx = 1\n```<|im_end|>"
    tokenizer = with_template(DEFAULT)
    tokenizer.bos_token = "<|im_start|>"
    assert render_prompt(tokenizer, ASKED) == f"<|im_start|>{prompt}"


def test_a_base_llm_is_asked_as_it_is_fine_tuned(llm: Path, tmp_path: Path) -> None:
    base = shutil.copytree(llm, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    pair = encode_pair(load_tokenizer(base), [*ASKED, ANSWER])
    prompt = ChatTokenizer(base).encode(ASKED)
    assert pair.input_ids[: len(prompt)] == prompt
    assert pair.labels[: len(prompt) + 1] == [-100] * len(prompt) + [pair.input_ids[len(prompt)]]
    assert prompt != ChatTokenizer(llm).encode(ASKED)
    # An adapter brings the template that it was fine-tuned with.
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    assert ChatTokenizer(base, adapter).encode(ASKED) == prompt
    (adapter / "chat_template.jinja").write_text(CHAT)
    assert ChatTokenizer(base, adapter).encode(ASKED) == ChatTokenizer(llm).encode(ASKED)


@pytest.mark.parametrize("template", [SYSTEM_REFUSED, DROPPED])
def test_a_system_text_without_a_role_begins_the_first_user_turn(template: str) -> None:
    tokenizer = with_template(template)
    prompt, answer = render_pair(tokenizer, [*ASKED, ANSWER])
    role = "model" if template is SYSTEM_REFUSED else "assistant"
    assert prompt == (
        f"<|im_start|>user\nYou design networks.\n\n\nWrite one.<|im_end|>\n<|im_start|>{role}\n"
    )
    assert prompt == render_prompt(tokenizer, ASKED)
    assert answer == "```python\nx = 1\n```<|im_end|>"


def test_a_system_role_that_is_known_stays() -> None:
    assert render_prompt(with_template(CHAT), ASKED).startswith("<|im_start|>system\nYou design")


def test_turns_that_must_alternate_are_joined() -> None:
    twice: list[Message] = [*ASKED, {"role": "user", "content": "In PyTorch."}]
    prompt = render_prompt(with_template(SYSTEM_REFUSED), twice)
    assert "Write one.\n\nIn PyTorch.<|im_end|>" in prompt
    assert prompt.count("<|im_start|>user") == 1


def test_a_template_that_refuses_every_form_is_named() -> None:
    tokenizer = with_template("{{ raise_exception('Not today') }}")
    with pytest.raises(UsageError, match="chat template of .* refuses .*system, user: Not today"):
        render_prompt(tokenizer, ASKED)
    with pytest.raises(UsageError, match="refuses a conversation of system, user: .*expected"):
        render_prompt(with_template("{% for"), ASKED)


def test_an_answer_follows_the_prompt_that_generation_sees() -> None:
    prompt, answer = render_pair(with_template(THINKS), [*ASKED, ANSWER])
    assert prompt.endswith("assistant\n<think>\n")
    assert answer == "```python\nx = 1\n```<|im_end|>"


def test_of_several_templates_the_default_one_counts(llm: Path, tmp_path: Path) -> None:
    several = shutil.copytree(llm, tmp_path / "several")
    tokenizer = load_tokenizer(llm)
    tokenizer.chat_template = {"tools": "{{ raise_exception('no') }}", "default": CHAT}
    tokenizer.save_pretrained(several)
    assert load_tokenizer(several).chat_template == CHAT
