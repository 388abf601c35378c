"""An adapter is applied as plain PEFT applies it, with all its parts, or refused in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from archloop.config import FinetuneConfig, resolve
from archloop.errors import ConfigError, UsageError
from archloop.llm.adapter_files import adapter_mismatch, require_plain_lora
from archloop.llm.finetuning import FinetuneJob
from archloop.llm.finetuning.loading import load
from archloop.llm.generation import build_generator
from archloop.llm.generation.language_model import ChatTokenizer, load_language_model
from archloop.types import Request
from tiny_llm import random_of

TARGETS = ["q_proj", "v_proj", "down_proj"]
PARTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "norms": {"modules_to_save": ["norm", "input_layernorm"]},
    "whole layer": {"modules_to_save": ["o_proj"]},
    "embeddings": {"modules_to_save": ["embed_tokens"]},
    "output layer": {"modules_to_save": ["lm_head"]},
    "LoRA on embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "some tokens": {"trainable_token_indices": [5, 40, 41]},
    "DoRA": {"use_dora": True},
    "ranks": {"rank_pattern": {"v_proj": 6}, "alpha_pattern": {"q_proj": 32}},
    "biases": {"bias": "all"},
}
ALONE_IN_VLLM = {"plain"}
"""Kinds that are nothing but LoRA matrices of one rank and scale."""
TRAINED_ON = {"plain", "DoRA", "ranks"}
"""Kinds that a fine-tune goes on from."""
TOKENS = 24


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this module's own; matrices this small are slower on more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCHLOOP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose output layer is its embedding, with biases for the adapters that train them."""
    return random_of("llama", tmp_path_factory.mktemp("llm"), attention_bias=True)


@pytest.fixture(scope="module")
def adapters(llm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One adapter of each kind, every trainable weight of which differs from the LLM's."""
    root, found = tmp_path_factory.mktemp("adapters"), {}
    for kind, options in PARTS.items():
        torch.manual_seed(1)
        base = AutoModelForCausalLM.from_pretrained(llm)
        given = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
        adapted = get_peft_model(base, LoraConfig(**(given | options)))
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad:
                    weight.add_(0.15 * torch.randn_like(weight))
        found[kind] = root / kind.replace(" ", "-")
        adapted.save_pretrained(found[kind])
    return found


def asked(text: str) -> Request:
    return Request(1, 0, 0, "digits", ({"role": "user", "content": text},), 0.0)


def greedy(engine: Any, llm: Path, adapter: Path | None) -> list[str]:
    settings = {"engine": engine, "max_new_tokens": TOKENS}
    generator = build_generator(
        resolve({"generation": settings, "llm": {"dtype": "float32"}}), model_dir=llm
    )
    generator.use(adapter)
    texts = [next(iter(generator.generate([asked(text)]))).text for text in ("x", "Write.", "net")]
    generator.close()
    return texts


def greedy_of_peft(llm: Path, adapter: Path) -> list[str]:
    """The texts of transformers' own ``generate`` with the adapter beside the weights."""
    base = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, adapter)
    tokenizer, texts = ChatTokenizer(llm), []
    for text in ("x", "Write.", "net"):
        ids = torch.tensor([tokenizer.encode(asked(text).messages)])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=TOKENS,
        )
        texts.append(tokenizer.finish(asked(text), out[0, ids.shape[1] :].tolist()).text)
    return texts


@pytest.mark.parametrize("kind", PARTS)
def test_transformers_applies_every_part_of_an_adapter(
    kind: str, llm: Path, adapters: dict[str, Path]
) -> None:
    wanted = greedy_of_peft(llm, adapters[kind])
    assert greedy("transformers", llm, adapters[kind]) == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="openvino-genai is for Linux")
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in ("norms", "embeddings") else pytest.mark.slow)
        for kind in PARTS
    ],
)
def test_openvino_applies_every_part_of_an_adapter(
    kind: str, llm: Path, adapters: dict[str, Path]
) -> None:
    """Norms are exchanged in the converted LLM; an output layer no longer tied is converted."""
    wanted = greedy_of_peft(llm, adapters[kind])
    assert greedy("openvino", llm, adapters[kind]) == wanted


@pytest.mark.parametrize("kind", PARTS)
def test_vllm_refuses_what_it_would_leave_out(kind: str, adapters: dict[str, Path]) -> None:
    if kind in ALONE_IN_VLLM:
        require_plain_lora(adapters[kind])
        return
    with pytest.raises(UsageError, match=r"vLLM would leave out .*'transformers' or 'openvino'"):
        require_plain_lora(adapters[kind])


@pytest.mark.parametrize("kind", sorted(PARTS.keys() - {"LoRA on embeddings"}))
def test_a_fine_tune_trains_all_of_an_adapter_or_refuses_it(
    kind: str, llm: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    config = FinetuneConfig(lora_r=4, lora_alpha=8, lora_dropout=0.0, target_modules=tuple(TARGETS))
    job = FinetuneJob(llm, tmp_path, tmp_path / "out", config, "float32", 0, adapters[kind])
    if kind not in TRAINED_ON:
        with pytest.raises(ConfigError, match=r"finetune\.init: going on from .* LoRA matrices"):
            load(job)
        return
    assert adapter_mismatch(adapters[kind], config) is None
    model = load(job)
    base = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, adapters[kind], is_trainable=True)
    ids = torch.arange(5, 45)[None]
    wanted = plain(input_ids=ids, labels=ids).loss
    wanted.backward()
    found = model(
        input_ids=ids,
        position_ids=torch.arange(40)[None],
        sources=torch.arange(39),
        labels=ids[0, 1:],
    )["loss"]
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), abs=1e-4)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    for name, weight in plain.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(gradients.pop(name), weight.grad, atol=1e-5, rtol=1e-3)
    assert not gradients


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens .* cannot be merged"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication .* cannot be merged"),
        ({"modules_to_save": ["norm"]}, r"does not fit the LLM: .*norm.*warm_start = \"none\""),
    ],
)
def test_an_adapter_that_cannot_be_applied_is_refused(
    changes: dict[str, Any],
    said: str,
    llm: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
) -> None:
    """Also one whose settings name a module that its weights lack."""
    for file in adapters["plain"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | changes))
    with pytest.raises(UsageError, match=said):
        load_language_model(llm, tmp_path, torch.float32)
