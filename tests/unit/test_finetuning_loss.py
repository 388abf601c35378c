"""What makes the fine-tune fast changes nothing: the same loss, the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import (
    AttentionInterface,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from archloop.config import FinetuneConfig
from archloop.errors import UsageError
from archloop.llm.finetuning import packing
from archloop.llm.finetuning.dataset import IGNORED, EncodedPair
from archloop.llm.finetuning.linear import patch_lora_forward
from archloop.llm.finetuning.loading import adapted, check_targets, use_packing
from archloop.llm.finetuning.loss import check_head, give_loss
from archloop.llm.models import attention_window
from tiny_llm import ARCHITECTURES, WINDOW, random_model

SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "initializer_range"),
)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]


def llm(**changes: Any) -> LlamaForCausalLM:
    """Two small layers with grouped keys, in 32 bits, and weights large enough to matter."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
        "initializer_range": 0.2,
    }
    model = LlamaForCausalLM(LlamaConfig(**(sizes | changes)))
    model.config.use_cache = False
    return model


def pairs() -> list[EncodedPair]:
    """Three pairs of different length with one prompt, as a run has them."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for length in (5, 9, 140):
        answer = torch.randint(5, 300, (length,), generator=generator).tolist()
        found.append(EncodedPair([1, 2, 3, 4, *answer], [IGNORED] * 4 + answer))
    return found


def plain_loss(model: Any, rows: list[EncodedPair]) -> torch.Tensor:
    """Summed over the counted tokens of each pair by itself, divided by their number."""
    total, count = torch.zeros(()), 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        total = total + cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        count += int((labels != IGNORED).sum())
    return total / count


def with_adapter(model: Any, **changes: Any) -> Any:
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS}
    adapter = get_peft_model(model, LoraConfig(**(options | changes), task_type="CAUSAL_LM"))
    for name, weight in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return adapter


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize(("packed", "share"), [(False, False), (True, False), (True, True)])
def test_a_batch_has_the_loss_and_the_gradients_of_its_pairs_apart(
    packed: bool, share: bool
) -> None:
    model, rows = with_adapter(llm()), pairs()
    wanted_loss = plain_loss(model, rows)
    wanted = gradients(model, wanted_loss)
    base = model.get_base_model()
    if packed:
        AttentionInterface.register(packing.ATTENTION, packing.attend)
        base.set_attn_implementation(packing.ATTENTION)
    give_loss(base)
    assert patch_lora_forward(model) == 2 * len(TARGETS)
    batch = packing.Collator(packed, share)(rows)
    loss = model(**batch)["loss"]
    assert loss.item() == pytest.approx(wanted_loss.item(), abs=1e-4)
    found = gradients(model, loss)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("packed", "share"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_kind_of_llm_has_the_loss_and_gradients_of_plain_peft(
    architecture: str, packed: bool, share: bool
) -> None:
    """Fused projections, Conv1D, windows, scaled embeddings and norms of queries and keys."""
    targets, rows = ARCHITECTURES[architecture].targets, pairs()
    model = with_adapter(random_model(architecture, vocab_size=300), target_modules=list(targets))
    model.config.use_cache = False
    wanted_loss = plain_loss(model, rows)
    wanted = gradients(model, wanted_loss)
    base = model.get_base_model()
    check_head(base)
    if packed:
        use_packing(base)
    give_loss(base)
    assert patch_lora_forward(model) == (0 if architecture == "gpt2" else 2 * len(targets))
    loss = model(**packing.Collator(packed, share)(rows))["loss"]
    assert loss.item() == pytest.approx(wanted_loss.item(), abs=1e-4)
    found = gradients(model, loss)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], atol=2e-5, rtol=2e-3)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("architecture", ["gemma3", "mistral"])
def test_a_window_of_attention_matters_in_a_packed_batch(architecture: str, share: bool) -> None:
    model, rows = random_model(architecture, vocab_size=300), pairs()
    assert attention_window(model.config) == WINDOW
    assert attention_window(llm().config) is None
    model.config.use_cache = False
    wanted = plain_loss(model, rows).item()
    use_packing(model)
    give_loss(model)
    batch = packing.Collator(packed=True, share_prompt=share)(rows)
    assert model(**batch)["loss"].item() == pytest.approx(wanted, abs=1e-4)
    for layer in model.model.layers:
        layer.self_attn.config.sliding_window = layer.self_attn.sliding_window = None
    assert abs(model(**batch)["loss"].item() - wanted) > 1e-3


def test_attention_across_pairs_would_be_seen() -> None:
    model, rows = llm(), pairs()
    wanted = plain_loss(model, rows).item()
    AttentionInterface.register(packing.ATTENTION, packing.attend)
    model.set_attn_implementation(packing.ATTENTION)
    give_loss(model)
    batch = packing.Collator(packed=True, share_prompt=False)(rows)
    assert abs(model(**batch)["loss"].item() - wanted) < 1e-4
    batch["documents"] = (0, batch["input_ids"].numel())
    assert abs(model(**batch)["loss"].item() - wanted) > 1e-2


def test_a_packed_row_has_no_padding_and_a_shared_prompt_once() -> None:
    rows = pairs()
    apart = packing.Collator(packed=True, share_prompt=False)(rows)
    shared = packing.Collator(packed=True, share_prompt=True)(rows)
    assert apart["input_ids"].numel() == apart["n_tokens"] == shared["n_tokens"] == 166
    assert shared["input_ids"].numel() == 166 - 2 * 4
    assert apart["documents"] == (0, 9, 13, 144)
    assert shared["documents"] == (4, 5, 9, 140)
    assert shared["labels"].numel() == 154


def test_only_uncounted_tokens_are_shared() -> None:
    twins = [EncodedPair([1, 2, 3, 4], [IGNORED, IGNORED, 3, 4])] * 2
    assert packing.shared_prompt(twins) == 2
    assert packing.shared_prompt(twins[:1]) == 0


def test_a_loss_that_is_not_finite_is_told() -> None:
    model = llm()
    give_loss(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))
    batch = packing.Collator(packed=False, share_prompt=False)(pairs())
    assert not torch.isfinite(model(**batch)["loss"])


def test_the_loss_of_many_tokens_is_summed_over_its_parts() -> None:
    model = llm()
    answer = torch.randint(5, 300, (400,), generator=torch.Generator().manual_seed(2)).tolist()
    row = EncodedPair([1, *answer], [IGNORED, *answer])
    wanted = plain_loss(model, [row]).item()
    give_loss(model)
    batch = packing.Collator(packed=False, share_prompt=False)([row])
    assert model(**batch)["loss"].item() == pytest.approx(wanted, abs=1e-5)


def test_an_output_layer_that_does_more_is_refused() -> None:
    model = llm()
    check_head(model)
    plain = model.lm_head.forward
    model.lm_head.forward = lambda states: 2 * plain(states)
    with pytest.raises(UsageError, match="output layer"):
        check_head(model)


def test_an_attention_that_looks_across_documents_is_refused() -> None:
    model = llm()
    with pytest.raises(UsageError, match=r"finetune\.packing"):
        # Its own attention takes the row for one document unless positions tell it otherwise.
        model.model.forward = _without_positions(model.model.forward)
        use_packing(model)


def test_an_attention_that_does_more_than_ours_is_refused() -> None:
    """A cap on the scores, as Gemma 2 has: ours has none."""
    config = Gemma2Config(
        **{k: v for k, v in llm().config.to_dict().items() if k in SIZES},
        head_dim=8,
        query_pre_attn_scalar=1,
        attn_logit_softcapping=0.5,
        final_logit_softcapping=None,
        attn_implementation="eager",
    )
    with pytest.raises(UsageError, match=r"finetune\.packing: not for Gemma2"):
        use_packing(Gemma2ForCausalLM(config))


def _without_positions(forward: Any) -> Any:
    def run(input_ids: Any, **_: Any) -> Any:
        return forward(input_ids=input_ids)

    return run


def test_an_unknown_target_is_named_with_those_there_are() -> None:
    config = FinetuneConfig(target_modules=("q_proj", "qkv_proj"))
    with pytest.raises(
        UsageError, match=r"target_modules: qkv_proj: no such.*LlamaForCausalLM"
    ) as e:
        check_targets(llm(), config)
    there = '["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]'
    assert f"set finetune.target_modules to some of {there}" in str(e.value)
    assert "lm_head" not in str(e.value)


def test_more_layers_than_there_are_is_refused() -> None:
    check_targets(llm(), FinetuneConfig(layers=2))
    with pytest.raises(UsageError, match=r"finetune\.layers: 3, but the LLM has 2"):
        check_targets(llm(), FinetuneConfig(layers=3))


def test_what_is_adapted_is_counted() -> None:
    model = with_adapter(llm(), target_modules=["q_proj", "v_proj"], layers_to_transform=[0])
    found = adapted(model)
    assert (found.modules, found.layers, found.of_layers) == (2, 1, 2)
    assert found.parameters == 4 * (32 + 32) + 4 * (32 + 16)
    assert "2 modules in 1 of 2 layers, 448 trainable" in str(found)


def test_dropout_and_biases_stay_with_peft() -> None:
    assert patch_lora_forward(with_adapter(llm(), lora_dropout=0.1)) == 0
    assert patch_lora_forward(with_adapter(llm(attention_bias=True))) == 2 * 3
