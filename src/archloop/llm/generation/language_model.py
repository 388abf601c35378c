"""Load the LLM with an adapter merged in, and turn chat messages into tokens and tokens into text.

Every engine goes through here, so all of them sample from the same weights and the same prompt
tokens. The adapter is merged into the weights, which costs one rounding per weight and no time
per token.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from archloop.errors import UsageError
from archloop.llm.models import attention_window, check_adapter, load_tokenizer, loading
from archloop.types import Completion, FinishReason, Message, Request

logger = logging.getLogger(__name__)


class ChatTokenizer:
    """The tokenizer of a model folder with its chat template and end tokens."""

    def __init__(self, model_dir: Path) -> None:
        """Read the tokenizer.

        Raises:
            UsageError: It has no chat template, or code does not survive it.
        """
        self._tokenizer = load_tokenizer(model_dir)
        if not self._tokenizer.chat_template:
            raise UsageError(f"llm.model: the tokenizer in {model_dir} has no chat template")
        self.end_ids = _end_ids(model_dir, self._tokenizer.eos_token_id)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt, up to where the assistant's answer begins."""
        tokens = self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=True
        )
        return [int(token) for token in tokens["input_ids"]]

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


def _end_ids(model_dir: Path, tokenizer_end: int | None) -> frozenset[int]:
    from transformers import GenerationConfig

    ends = {tokenizer_end}
    if (model_dir / "generation_config.json").is_file():
        with loading(model_dir):
            named = GenerationConfig.from_pretrained(model_dir).eos_token_id
        ends |= set(named) if isinstance(named, list) else {named}
    found = frozenset(end for end in ends if end is not None)
    if not found:
        raise UsageError(f"llm.model: {model_dir} names no end token")
    return found


def require_reach(config: Any, n_tokens: int) -> None:
    """Whether all layers of an LLM attend to so many tokens, as the engines here have them do.

    Args:
        config: Of transformers.
        n_tokens: The prompt and the longest answer.

    Raises:
        UsageError: Some attend to fewer.
    """
    window = attention_window(config)
    if window is not None and window < n_tokens:
        raise UsageError(
            f"llm.model: layers that attend to {window} tokens only, fewer than the {n_tokens} of "
            "prompt and generation.max_new_tokens; engines that know such: 'vllm', 'openai'"
        )


def load_language_model(
    model_dir: Path, adapter_dir: Path | None, dtype: torch.dtype
) -> tuple[Any, frozenset[str]]:
    """The LLM in evaluation mode, and the names of the weights the adapter changed.

    Raises:
        UsageError: The adapter's weights do not fit this LLM, are not finite, or change nothing.
    """
    from transformers import AutoModelForCausalLM

    with loading(model_dir):
        model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
    model.eval().requires_grad_(False)
    if adapter_dir is None:
        return model, frozenset()
    return _merge(model, adapter_dir)


def _merge(model: Any, adapter_dir: Path) -> tuple[Any, frozenset[str]]:
    from peft import PeftConfig, PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    check_adapter(adapter_dir)
    try:
        adapted = PeftModel(model, PeftConfig.from_pretrained(adapter_dir))
        loaded = adapted.load_adapter(adapter_dir, "default")
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{adapter_dir}: adapter does not fit the LLM: {reason}") from None
    strangers = [*loaded.unexpected_keys, *(k for k in loaded.missing_keys if "lora_" in k)]
    if strangers:
        raise UsageError(
            f"{adapter_dir}: adapter does not fit the LLM: {len(strangers)} tensors have no "
            f"counterpart, for example {strangers[0]}"
        )
    before = {
        name: _checksum(layer)
        for name, layer in adapted.base_model.model.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UsageError(f"{adapter_dir}: adapter is not finite: {error}") from None
    changed = {
        name for name, total in before.items() if _checksum(merged.get_submodule(name)) != total
    }
    if not changed:
        raise UsageError(
            f"{adapter_dir}: adapter has no effect: no weight changes when it is merged"
        )
    logger.debug("adapter %s changed %d of %d layers", adapter_dir, len(changed), len(before))
    return merged.eval().requires_grad_(False), frozenset(f"{name}.weight" for name in changed)


def _checksum(layer: Any) -> float:
    """A number that differs when any weight of the layer does (up to exact cancellation)."""
    weight: torch.Tensor = getattr(layer, "base_layer", layer).weight
    return float(weight.sum(dtype=torch.float64))
