"""Estimates the memory and disk space of an LLM from its shape, before anything is loaded.

The estimates are for Llama-like models and tell whether a machine is large enough; they do not
include the memory of CUDA and the libraries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from archloop.config import FinetuneConfig, GenerationConfig

_ACTIVATION_BYTES = 34
"""Bytes a layer keeps for the backward pass, per token and hidden unit, without attention scores
(Korthikanti et al. 2022, "Reducing activation recomputation in large transformer models", eq.
2)."""

_ADAPTER_BYTES = 1.2
_DROPPED_BYTES = 4.2
"""Bytes that an adapter keeps in addition, per token and input of the projection it is on: the
input in 16 bits, which some projections share; with dropout each its own, and a mask. As counted
with SmolLM2-135M (``tests/unit/test_footprint.py`` counts again)."""

_LOGIT_BYTES = 10
"""Per token and vocabulary entry: logits in 16 bits, their softmax in 32, its gradient in 32 and
16."""

_LOGIT_TOKENS = 1024
"""Most tokens whose logits are in memory together (``finetuning/loss.py``)."""

_PROMPT_TOKENS = 512
"""Tokens assumed for the prompt."""

_SIZE_IN_NAME = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class LLMShape:
    """The dimensions of a Llama-like model that determine its memory."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool
    """Whether the output layer shares the embedding's weights."""
    head_dim: int = 0
    """Width of a head; 0: the hidden units divided among the heads."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LLMShape | None:
        """From a Hugging Face ``config.json``; ``None`` if it is of another kind of model."""
        try:
            return cls(
                hidden=int(config["hidden_size"]),
                intermediate=int(config["intermediate_size"]),
                layers=int(config["num_hidden_layers"]),
                heads=int(config["num_attention_heads"]),
                kv_heads=int(config.get("num_key_value_heads") or config["num_attention_heads"]),
                vocab=int(config["vocab_size"]),
                tied=bool(config.get("tie_word_embeddings", False)),
                head_dim=int(config.get("head_dim") or 0),
            )
        except (KeyError, TypeError, ValueError):
            return None

    @classmethod
    def from_name(cls, name: str) -> LLMShape | None:
        """A typical shape for a name that tells the size (``...-7b-...``); ``None`` if it does not.

        Llama's family is near hidden = 128 x layers and intermediate = 2.7 x hidden, so a model has
        about 12.1 x 128^2 x layers^3 parameters outside its embeddings.
        """
        found = _SIZE_IN_NAME.search(name)
        if not found:
            return None
        n_params = float(found[1]) * (1e9 if found[2] in "bB" else 1e6)
        layers = max(1, round((n_params / (12.1 * 128**2)) ** (1 / 3)))
        hidden = 128 * layers
        return cls(hidden, round(2.7 * hidden), layers, layers, layers, vocab=100_000, tied=True)

    @property
    def kv_width(self) -> int:
        """Width of keys and of values, all heads together."""
        return self._head * self.kv_heads

    @property
    def _head(self) -> int:
        return self.head_dim or self.hidden // self.heads

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each projection in a layer."""
        queries = self._head * self.heads
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (queries, self.hidden),
            "up_proj": (self.hidden, self.intermediate),
            "gate_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def n_params(self) -> int:
        """Parameters of the model."""
        layer = sum(i * o for i, o in self.projections.values()) + 2 * self.hidden
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + embeddings + self.hidden

    def adapter_params(self, config: FinetuneConfig) -> int:
        """Parameters of a LoRA adapter: r x (inputs + outputs) of each projection it is on."""
        sizes = [sum(s) for name, s in self.projections.items() if name in config.target_modules]
        return self._adapted_layers(config) * config.lora_r * sum(sizes)

    def activation_bytes(self, config: FinetuneConfig) -> float:
        """Bytes kept for the backward pass of one token, in 16 bits."""
        each = _DROPPED_BYTES if config.lora_dropout else _ADAPTER_BYTES
        inputs = [i for name, (i, _) in self.projections.items() if name in config.target_modules]
        adapters = self._adapted_layers(config) * sum(inputs) * each
        return self.layers * _ACTIVATION_BYTES * self.hidden + adapters

    def _adapted_layers(self, config: FinetuneConfig) -> int:
        return self.layers if config.layers is None else min(config.layers, self.layers)


def weight_bytes(shape: LLMShape, dtype: str) -> int:
    """Memory of the weights, and the size of their files."""
    return shape.n_params * _width(dtype)


def _width(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else 4


def finetune_bytes(
    shape: LLMShape, config: FinetuneConfig, dtype: str, *, checkpointing: bool
) -> int:
    """Memory of LoRA fine-tuning on a batch of the longest sequences allowed.

    Args:
        shape: The base LLM.
        config: Batch size, longest sequence, LoRA and optimiser.
        dtype: Of the frozen weights; the adapter trains in 32 bits.
        checkpointing: Whether activations are recomputed or kept.
    """
    optimiser = 2 if config.optimizer == "paged_adamw_8bit" else 8
    # Weights and gradients in 32 bits, and the 16-bit copies that autocast works with.
    adapter = shape.adapter_params(config) * (4 + 4 + 2 + optimiser)
    tokens = config.batch_size * config.max_length
    width = _width(dtype)
    activations = round(tokens * shape.activation_bytes(config)) * width // 2
    if checkpointing:
        # Activations of one layer at a time, and the states between all layers.
        activations = activations // shape.layers + width * tokens * shape.hidden * shape.layers
    logits = _LOGIT_BYTES * min(tokens, _LOGIT_TOKENS) * shape.vocab
    weights = weight_bytes(shape, dtype)
    if config.quantization == "nf4":
        # 4 bits and an 8-bit scale for every 64 weights; PEFT makes the others, embeddings and
        # output layer, 32 bits wide.
        others = shape.vocab * shape.hidden * (1 if shape.tied else 2)
        weights = round(4 * others + 0.53 * (shape.n_params - others))
    return weights + adapter + activations + logits


def generation_bytes(shape: LLMShape, config: GenerationConfig, dtype: str) -> int:
    """Memory of sampling one batch to the last token: weights, keys and values."""
    tokens = config.batch_size * (_PROMPT_TOKENS + config.max_new_tokens)
    return weight_bytes(shape, dtype) + tokens * shape.layers * 2 * shape.kv_width * _width(dtype)
