"""A tokenizer and LLMs so small that a test trains one in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import network

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(texts: Sequence[str], *, words: bool = True) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of a few hundred tokens, with a chat template.

    Args:
        texts: What its tokens are made from.
        words: No token reaches across words. Otherwise what all texts share is a handful of tokens.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT
    return tokenizer


def random_llm(folder: Path) -> Path:
    """A Llama of two narrow layers with random weights."""
    tokenizer = make_tokenizer([network()])
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SYSTEM_REFUSED = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
"""As Gemma's and Mistral's first templates: no system turn, and strictly alternating ones."""

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.15,
}
_GROUPED: dict[str, Any] = {"intermediate_size": 48, "num_key_value_heads": 2}
WINDOW = 16


class Architecture(NamedTuple):
    """A kind of LLM: its configuration in transformers, and where LoRA goes."""

    config: str
    sizes: dict[str, Any]
    targets: tuple[str, ...] = (
        *("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"),
    )


ARCHITECTURES = {
    "llama": Architecture("LlamaConfig", _GROUPED | {"tie_word_embeddings": True}),
    "qwen3": Architecture("Qwen3Config", _GROUPED | {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma3": Architecture(
        "Gemma3TextConfig",
        _GROUPED
        | {
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi3": Architecture(
        "Phi3Config",
        _GROUPED | {"tie_word_embeddings": False},
        ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    ),
    "mistral": Architecture(
        "MistralConfig", _GROUPED | {"sliding_window": WINDOW, "tie_word_embeddings": False}
    ),
    "gpt2": Architecture(
        "GPT2Config",
        {"n_positions": 2048, "tie_word_embeddings": True}
        | dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
        ("c_attn", "c_proj", "c_fc"),
    ),
}
"""Kinds that differ in what LoRA, packing and the conversion to OpenVINO have to know."""


def random_model(architecture: str, **changes: Any) -> Any:
    """An LLM of one of :data:`ARCHITECTURES` with random weights, in two narrow layers."""
    kind = ARCHITECTURES[architecture]
    config = getattr(transformers, kind.config)(**(_SIZES | kind.sizes | changes))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:  # norms and biases begin as ones and zeros
                weight.add_(0.2 * torch.randn_like(weight))
    return model


def random_of(architecture: str, folder: Path, **changes: Any) -> Path:
    """The same in a folder, with a tokenizer."""
    tokenizer = make_tokenizer([network()])
    sizes = {"vocab_size": len(tokenizer)} | changes
    random_model(architecture, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
