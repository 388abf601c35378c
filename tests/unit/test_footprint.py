from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from archloop.config import load_config
from archloop.llm.finetuning.loading import in_autocast
from archloop.machine.footprint import LLMShape, finetune_bytes, generation_bytes, weight_bytes

DEEPSEEK = LLMShape(4096, 11008, 30, 32, 32, 102_400, tied=False)
"""deepseek-coder-7b-instruct-v1.5."""
SMOLLM2 = LLMShape(576, 1536, 30, 9, 3, 49_152, tied=True)


def llama(shape: LLMShape) -> Any:
    """The configuration of a Llama of a shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
    )


@pytest.mark.parametrize(("shape", "preset"), [(DEEPSEEK, "paper"), (SMOLLM2, "embedded")])
def test_counts_are_those_of_the_real_libraries(shape: LLMShape, preset: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = llama(shape)
    known = LLMShape.from_config(config.to_dict())
    assert known == replace(shape, head_dim=shape.hidden // shape.heads)
    finetune = load_config(preset).finetune
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in model.parameters()) == shape.n_params
        lora = LoraConfig(
            r=finetune.lora_r,
            target_modules=list(finetune.target_modules),
            layers_to_transform=finetune.layers and list(range(finetune.layers)),
        )
        trainable = get_peft_model(model, lora).get_nb_trainable_parameters()[0]
    assert trainable == shape.adapter_params(finetune)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("deepseek-ai/deepseek-coder-7b-instruct-v1.5", 7.0),
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", 1.5),
        ("org/model-34B", 34.0),
        ("smollm2-135m", 0.135),
    ],
)
def test_a_name_that_tells_the_size_gives_a_model_of_that_size(name: str, billions: float) -> None:
    shape = LLMShape.from_name(name)
    assert shape is not None
    assert shape.n_params - shape.vocab * shape.hidden == pytest.approx(billions * 1e9, rel=0.15)


@pytest.mark.parametrize("name", ["org/model", "org/v1.5", "a2b7", "deepseek-coder-7bit"])
def test_a_name_that_tells_no_size_gives_none(name: str) -> None:
    assert LLMShape.from_name(name) is None


def test_another_kind_of_model_gives_none() -> None:
    assert LLMShape.from_config({"model_type": "gpt2", "n_embd": 768}) is None


def test_the_paper_needs_a_large_gpu_and_checkpointing_saves_most() -> None:
    config = load_config("paper")
    assert weight_bytes(DEEPSEEK, "bfloat16") == pytest.approx(13.8e9, rel=0.01)
    kept, recomputed = (
        finetune_bytes(DEEPSEEK, config.finetune, "bfloat16", checkpointing=c) / 2**30
        for c in (False, True)
    )
    assert 14 < recomputed < 20 < kept < 48
    assert 24 < generation_bytes(DEEPSEEK, config.generation, "bfloat16") / 2**30 < 40


def test_four_bits_save_most_of_the_weights() -> None:
    config = load_config("paper").finetune
    quantized = config.model_copy(update={"quantization": "nf4"})
    saved = finetune_bytes(DEEPSEEK, config, "bfloat16", checkpointing=True) - finetune_bytes(
        DEEPSEEK, quantized, "bfloat16", checkpointing=True
    )
    # 6.07 billion weights in the layers: 2 bytes each, less 0.53; 0.84 billion others get 2 more.
    assert saved == pytest.approx(6.07e9 * (2 - 0.53) - 0.84e9 * 2, rel=0.01)


@pytest.mark.parametrize(("dropout", "layers"), [(0.05, None), (0.05, 2), (0.0, None)])
def test_activations_are_those_that_autograd_keeps(dropout: float, layers: int | None) -> None:
    """Counted for an LLM of SmolLM2's proportions, in bf16, its adapters as in a fine-tune."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    shape, tokens = LLMShape(192, 512, 4, 3, 1, 64, tied=True), 512
    config = load_config("paper").finetune.model_copy(
        update={"lora_dropout": dropout, "layers": layers, "lora_r": 4}
    )
    base = AutoModelForCausalLM.from_config(llama(shape), dtype=torch.bfloat16)
    lora = LoraConfig(
        r=config.lora_r,
        lora_dropout=dropout,
        target_modules=list(config.target_modules),
        layers_to_transform=layers and list(range(layers)),
    )
    model = in_autocast(get_peft_model(base, lora)).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        decoder = model.get_base_model().get_decoder()
        decoder(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    counted = sum(t.untyped_storage().nbytes() for p, t in kept.items() if p not in weights)
    assert counted / tokens == pytest.approx(shape.activation_bytes(config), rel=0.15)


def test_heads_may_be_wider_than_the_hidden_units_divided() -> None:
    """Qwen3-0.6B: 596 million parameters, 114,688 bytes of keys and values a token."""
    shape = LLMShape(1024, 3072, 28, 16, 8, 151_936, tied=True, head_dim=128)
    assert shape.n_params == pytest.approx(596e6, rel=0.002)
    assert 2 * 2 * shape.layers * shape.kv_width == 114_688


def test_a_configuration_with_holes_is_of_another_kind() -> None:
    config = {"hidden_size": 8, "intermediate_size": None, "num_hidden_layers": 1}
    more = {"num_attention_heads": 1, "vocab_size": 9}
    assert LLMShape.from_config(config | more) is None


def test_activations_and_keys_are_as_wide_as_the_type() -> None:
    config = load_config("embedded")
    half, full = (
        [
            finetune_bytes(SMOLLM2, config.finetune, dtype, checkpointing=False),
            generation_bytes(SMOLLM2, config.generation, dtype),
        ]
        for dtype in ("bfloat16", "float32")
    )
    assert full[1] == 2 * half[1]
    tokens = config.finetune.batch_size * config.finetune.max_length
    more = SMOLLM2.n_params * 2 + round(tokens * SMOLLM2.activation_bytes(config.finetune))
    assert full[0] - half[0] == more
