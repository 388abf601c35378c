"""Chat messages as the text that an LLM sees, the same in generation and in fine-tuning.

The template is the tokenizer's, or :data:`DEFAULT` for base LLMs that have none. Where it knows no
system role (Gemma 2, the first Mistral), raises on it or leaves its text out, that text becomes the
beginning of the first user turn. Where turns must alternate, neighbours of one role are joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from jinja2 import TemplateError

from archloop.errors import UsageError
from archloop.types import Message

DEFAULT = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "### {{ message.role | capitalize }}:\n{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""Headings that any tokenizer has tokens for; the answer ends with the LLM's own end token."""

_REFUSALS = (TemplateError, AttributeError, KeyError, TypeError, ValueError)
"""What a template raises on purpose or by mistake, and transformers on one it cannot choose."""


def render_prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The prompt, up to where the assistant's answer begins.

    Raises:
        UsageError: The chat template refuses the messages.
    """
    return _render(tokenizer, _accepted(tokenizer, messages), prompt=True)


def render_pair(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, str]:
    """The prompt, and the answer that follows it up to its end token.

    A template that renders the prompt differently when an answer follows (some of LLMs that think)
    has no say in the answer, which then is the message and the end token.

    Raises:
        UsageError: The chat template refuses the messages.
    """
    asked = _accepted(tokenizer, messages[:-1])
    prompt = _render(tokenizer, asked, prompt=True)
    whole = _render(tokenizer, [*asked, messages[-1]], prompt=False)
    if not whole.startswith(prompt):
        return prompt, messages[-1]["content"] + tokenizer.eos_token
    answer, end, _ = whole[len(prompt) :].rpartition(tokenizer.eos_token)
    return prompt, (answer if end else whole[len(prompt) :].rstrip("\n")) + tokenizer.eos_token


def _accepted(tokenizer: Any, messages: Sequence[Message]) -> Sequence[Message]:
    """The messages in the first form that the template takes, with all of their text."""
    forms = [list(messages), _without_system(messages)]
    forms.append(_alternating(forms[1]))
    for form in forms:
        try:
            text = _apply(tokenizer, form, prompt=True)
        except _REFUSALS:
            continue
        if all(message["content"].strip() in text for message in form):
            return form
    return messages


def _without_system(messages: Sequence[Message]) -> list[Message]:
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    system, *rest = messages
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": system["content"]}, *rest]
    return [_joined([{**system, "role": "user"}, rest[0]]), *rest[1:]]


def _alternating(messages: Sequence[Message]) -> list[Message]:
    return [_joined(list(same)) for _, same in groupby(messages, lambda message: message["role"])]


def _joined(messages: Sequence[Message]) -> Message:
    text = "\n\n".join(m["content"] for m in messages if m["content"])
    return {"role": messages[0]["role"], "content": text}


def _render(tokenizer: Any, messages: Sequence[Message], *, prompt: bool) -> str:
    try:
        return _apply(tokenizer, messages, prompt=prompt)
    except _REFUSALS as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UsageError(
            f"llm.model: the chat template of {tokenizer.name_or_path} refuses a conversation of "
            f"{roles}: {' '.join(str(error).split())[:200]}"
        ) from None


def _apply(tokenizer: Any, messages: Sequence[Message], *, prompt: bool) -> str:
    text: str = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=prompt
    )
    return text
