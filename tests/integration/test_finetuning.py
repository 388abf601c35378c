"""A real fine-tune of the real LLM, a few steps long."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archloop.config import FinetuneConfig, LLMConfig
from archloop.corpus.pairs import make_pair, write_pairs
from archloop.llm.finetuning import FinetuneJob, FinetuneProgress, FinetuneResult, finetune
from archloop.llm.models import resolve_model
from archloop.machine.downloads import sha256_of
from archloop.machine.hardware import resolved_dtype
from archloop.search.prompts import CIFAR10, PromptTemplate
from conftest import network

pytestmark = [pytest.mark.llm, pytest.mark.slow]
CONFIG = FinetuneConfig(
    lora_r=4,
    lora_alpha=8,
    lora_dropout=0.0,
    lr=2e-3,
    batch_size=2,  # both pairs in each step, so that losses are of the same pairs
    grad_accumulation=1,
    max_steps=2,
    warmup_steps=0,
    max_length=1024,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    prompt = PromptTemplate().render(CIFAR10, 500_000)
    codes = [network(init=f"self.n = {i}").strip() for i in range(2)]
    too_long = network(top="\n".join(f"x{i} = {i}" for i in range(400)))
    write_pairs(file, [make_pair(prompt, code, {}) for code in [*codes, too_long]])
    return file


def job(corpus: Path, output: Path, **changes: object) -> FinetuneJob:
    fields: dict[str, object] = {
        "model_dir": resolve_model(LLMConfig()),
        "corpus": corpus,
        "output": output,
        "config": CONFIG,
        "dtype": resolved_dtype("auto"),
        "seed": 0,
    }
    return FinetuneJob(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FinetuneResult, list]:
    steps: list[FinetuneProgress] = []
    output = tmp_path_factory.mktemp("adapters") / "first"
    return finetune(job(corpus, output, lineage={"cycle": 1}), steps.append), steps


def test_the_loss_falls_and_every_step_is_told(
    trained: tuple[FinetuneResult, list[FinetuneProgress]],
) -> None:
    result, steps = trained
    assert [(s.step, s.total_steps) for s in steps] == [(0, 2), (1, 2), (2, 2)]
    assert steps[0].loss is None, "loaded, and no step is made yet"
    assert steps[2].loss is not None
    assert steps[1].loss is not None
    assert steps[2].loss < steps[1].loss
    assert (result.n_pairs, result.n_too_long, result.steps) == (2, 1, 2)


def test_plain_peft_loads_the_adapter_and_it_changes_the_model(
    trained: tuple[FinetuneResult, list[FinetuneProgress]],
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model_dir = resolve_model(LLMConfig())
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, trained[0].adapter)(ids).logits
    assert not torch.allclose(before, after)


def test_the_lineage_says_where_the_adapter_comes_from(
    trained: tuple[FinetuneResult, list[FinetuneProgress]], corpus: Path, tmp_path: Path
) -> None:
    parent = trained[0].adapter
    first = json.loads((parent / "lineage.json").read_text())
    assert (first["init"], first["parent"], first["cycle"]) == ("base", None, 1)
    assert first["corpus_sha256"] == sha256_of(corpus)
    one_step = CONFIG.model_copy(update={"max_steps": 1})
    result = finetune(job(corpus, tmp_path / "second", parent=parent, config=one_step))
    second = json.loads((result.adapter / "lineage.json").read_text())
    assert (second["init"], second["parent"]) == ("previous", "first")
    assert second["parent_sha256"] == sha256_of(parent / "adapter_model.safetensors")
    # Going on from where the parent ended, not from the base.
    last = trained[1][-1].loss
    assert last is not None
    assert result.loss < last
