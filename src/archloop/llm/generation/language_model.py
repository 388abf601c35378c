"""Load the LLM with an adapter merged in, and turn chat messages into tokens and tokens into text.

Every engine goes through here, so all of them sample from the same weights and the same prompt
tokens. The adapter is merged into the weights, which costs one rounding per weight and no time
per token.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from archloop.errors import UsageError
from archloop.llm.adapter_files import beyond_lora, does_not_fit
from archloop.llm.chat_template import render_prompt
from archloop.llm.models import (
    check_adapter,
    check_vocabulary,
    context_length,
    end_tokens,
    load_tokenizer,
    loading,
    require_plain_weights,
)
from archloop.types import Completion, FinishReason, Message, Request

logger = logging.getLogger(__name__)

_NOT_MERGED = ("layer_replication", "alora_invocation_tokens")
"""Parts of an adapter that are no change of the weights."""


class ChatTokenizer:
    """The tokenizer of a model folder with its chat template and end tokens."""

    def __init__(self, model_dir: Path, adapter: Path | None = None) -> None:
        """Read the tokenizer.

        Args:
            model_dir: The base LLM.
            adapter: What it is changed by; its chat template counts if it has one.

        Raises:
            UsageError: Code does not survive it, or there is no end token.
        """
        self._model_dir = model_dir
        self._tokenizer = load_tokenizer(model_dir, adapter)
        with loading(model_dir):
            self.end_ids = frozenset([self._tokenizer.eos_token_id, *end_tokens(model_dir)])

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt, up to where the assistant's answer begins.

        Raises:
            UsageError: The chat template refuses the messages, or the LLM lacks one of the tokens.
        """
        text = render_prompt(self._tokenizer, messages)
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        check_vocabulary(self._model_dir, tokens)
        return tokens

    def finish(self, request: Request, tokens: Sequence[int]) -> Completion:
        """The answer that a sequence of sampled tokens is, with or without an end token last."""
        stopped = bool(tokens) and tokens[-1] in self.end_ids
        text: str = self._tokenizer.decode(
            list(tokens[:-1] if stopped else tokens),
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        reason: FinishReason = "stop" if stopped else "length"
        return Completion(request.cycle, request.index, text, len(tokens), reason)


def by_prompt(
    requests: Sequence[Request],
) -> list[tuple[tuple[Message, ...], list[Request]]]:
    """Requests in groups of one prompt each, in the order in which the prompts come."""
    groups: dict[str, list[Request]] = {}
    for request in requests:
        groups.setdefault(json.dumps(request.messages), []).append(request)
    return [(same[0].messages, same) for same in groups.values()]


def require_context(config: Any, n_prompt: int, max_new_tokens: int) -> None:
    """Whether an LLM has positions for a prompt and the longest answer.

    Args:
        config: Of transformers.
        n_prompt: Tokens of the prompt.
        max_new_tokens: ``generation.max_new_tokens``.

    Raises:
        UsageError: It has not.
    """
    context = context_length(config.to_dict())
    if context is not None and n_prompt + max_new_tokens > context:
        room = context - n_prompt
        raise UsageError(
            f"generation.max_new_tokens: {max_new_tokens}, but the LLM has a context of {context} "
            f"tokens, of which the prompt takes {n_prompt}; "
            + (f"at most {room}" if room > 0 else "shorten prompt.system and prompt.user")
        )


def load_language_model(
    model_dir: Path, adapter_dir: Path | None, dtype: torch.dtype
) -> tuple[Any, frozenset[str]]:
    """The LLM in evaluation mode, and the names of the weights the adapter changed.

    Raises:
        UsageError: The adapter's weights do not fit this LLM, are not finite, or change nothing.
    """
    from transformers import AutoModelForCausalLM

    require_plain_weights(model_dir)
    with loading(model_dir):
        model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
    model.eval().requires_grad_(False)
    if adapter_dir is None:
        return model, frozenset()
    return _merge(model, adapter_dir)


def _merge(model: Any, adapter_dir: Path) -> tuple[Any, frozenset[str]]:
    check_adapter(adapter_dir)
    if found := [x for key, x in beyond_lora(adapter_dir).items() if key in _NOT_MERGED]:
        raise UsageError(f"{adapter_dir}: an adapter with {found[0]} cannot be merged")
    before = _checksums(model)
    adapted = _attached(model, adapter_dir)
    _untie(adapted)
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UsageError(f"{adapter_dir}: adapter is not finite: {error}") from None
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{adapter_dir}: adapter cannot be merged: {reason}") from None
    after = _checksums(merged)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    if not changed:
        raise UsageError(
            f"{adapter_dir}: adapter has no effect: no weight changes when it is merged"
        )
    weights = dict(merged.named_parameters())
    if wrong := [n for n in sorted(changed & weights.keys()) if not weights[n].isfinite().all()]:
        raise UsageError(f"{adapter_dir}: adapter is not finite: NaN or infinity in {wrong[0]}")
    logger.debug("adapter %s changed %d of %d weights", adapter_dir, len(changed), len(before))
    return merged.eval().requires_grad_(False), frozenset(changed)


def _attached(model: Any, adapter_dir: Path) -> Any:
    """The LLM with the adapter beside its weights; every tensor of the adapter is in use."""
    from peft import PeftConfig, PeftModel

    try:
        adapted = PeftModel(model, PeftConfig.from_pretrained(adapter_dir))
        loaded = adapted.load_adapter(adapter_dir, "default")
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(does_not_fit(adapter_dir, reason)) from None
    own = [key for key in loaded.missing_keys if "default" in key.split(".")]
    if strangers := [*loaded.unexpected_keys, *own]:
        reason = f"{len(strangers)} tensors have no counterpart, for example {strangers[0]}"
        raise UsageError(does_not_fit(adapter_dir, reason))
    return adapted


def _untie(adapted: Any) -> None:
    """Give an output layer that shares the embedding's weights its own, if the adapter is on one.

    Merging writes into the weights; beside them the adapter would change the one layer alone.
    """
    holders: dict[int, list[tuple[str, Any]]] = {}
    for name, module in adapted.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            holders.setdefault(id(weight), []).append((name, module))
    for same in holders.values():
        if len(same) > 1 and any(name.endswith("base_layer") for name, _ in same):
            for _, module in same[1:]:
                module.weight = torch.nn.Parameter(module.weight.detach().clone(), False)


def _checksums(model: Any) -> dict[str, int]:
    """A number for each weight that differs when any of its bits does."""
    return {
        name: zlib.crc32(weight.detach().flatten().view(torch.uint8).numpy())
        for name, weight in model.named_parameters()
    }
