"""A tokenizer and LLMs so small that a test trains one in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
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

_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.15,
}
_GROUPED = {"intermediate_size": 48, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaConfig", _GROUPED | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", _GROUPED | {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma3": (
        "Gemma3TextConfig",
        _GROUPED
        | {
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi3": ("Phi3Config", _GROUPED | {"tie_word_embeddings": False}),
    "mistral": ("MistralConfig", _GROUPED | {"sliding_window": 16, "tie_word_embeddings": False}),
    "gpt2": ("GPT2Config", {"n_positions": 2048, "tie_word_embeddings": True}),
}
"""What makes each kind of LLM different, in two narrow layers."""


def random_of(architecture: str, folder: Path, **changes: object) -> Path:
    """An LLM of one of :data:`ARCHITECTURES` with random weights."""
    import transformers

    tokenizer = make_tokenizer([network()])
    torch.manual_seed(0)
    name, own = ARCHITECTURES[architecture]
    config = getattr(transformers, name)(
        **(_SHAPE | {"vocab_size": len(tokenizer)} | own | changes)
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():  # norms and biases that matter
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
