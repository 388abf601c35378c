"""Kinds of LLMs that differ from Llama, each fine-tuned and sampled from by both local engines.

Plain PEFT and transformers' own ``generate`` say what the adapter's greedy texts are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from archloop.config import FinetuneConfig, resolve
from archloop.corpus.pairs import make_pair, write_pairs
from archloop.errors import UsageError
from archloop.llm.adapter_files import check_warm_start
from archloop.llm.finetuning import FinetuneJob, lora
from archloop.llm.generation import build_generator
from archloop.llm.generation.language_model import ChatTokenizer
from archloop.search.prompts import CIFAR10, PromptTemplate
from archloop.types import Message, Request
from conftest import network
from tiny_llm import ARCHITECTURES, random_of

QUESTIONS = ("x", "Write a network.")
TOKENS = 20
WINDOWED = ("gemma3", "mistral")
"""Their layers attend to fewer tokens than a prompt has: windows are tested too."""


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this module's own; matrices this small are slower on more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCHLOOP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


class Tuned(NamedTuple):
    """An LLM with the adapter of a fine-tune, and the texts it has to write."""

    name: str
    llm: Path
    adapter: Path
    losses: list[float]
    texts: list[str]


def asked(text: str) -> Request:
    system: Message = {"role": "system", "content": "You design."}
    return Request(1, 0, 0, "digits", (system, {"role": "user", "content": text}), 0.0)


def reference(llm: Path, adapter: Path | None) -> list[str]:
    model: Any = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    tokenizer, texts = ChatTokenizer(llm), []
    for question in QUESTIONS:
        ids = torch.tensor([tokenizer.encode(asked(question).messages)])
        mask = torch.ones_like(ids)
        out = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=TOKENS
        )
        texts.append(tokenizer.finish(asked(question), out[0, ids.shape[1] :].tolist()).text)
    return texts


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    root = tmp_path_factory.mktemp(request.param)
    llm = random_of(request.param, root / "llm")
    prompt = PromptTemplate().render(CIFAR10, 500_000)
    codes = [network(init="; ".join(["self.n = 1"] * (i + 1))) for i in range(4)]
    write_pairs(root / "corpus.jsonl", [make_pair(prompt, code, {}) for code in codes])
    config = FinetuneConfig(
        lora_r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=ARCHITECTURES[request.param].targets,
        epochs=3,
        lr=5e-2,
        batch_size=2,
        grad_accumulation=1,
        warmup_steps=0,
        max_length=2048,
        packing=True,
    )
    losses: list[float] = []
    job = FinetuneJob(llm, root / "corpus.jsonl", root / "adapter", config, "float32", 3)
    done = lora.run(
        job.to_json(), lambda event, data: losses.append(data["loss"]) if event == "step" else None
    )
    adapter = Path(done["adapter"])
    return Tuned(request.param, llm, adapter, losses, reference(llm, adapter))


def sample(engine: Any, tuned: Tuned) -> list[str]:
    settings = {"engine": engine, "max_new_tokens": TOKENS}
    config = resolve({"generation": settings, "llm": {"dtype": "float32"}})
    generator = build_generator(config, model_dir=tuned.llm)
    generator.use(tuned.adapter)
    texts = [next(iter(generator.generate([asked(q)]))).text for q in QUESTIONS]
    generator.close()
    return texts


def test_transformers_writes_what_plain_peft_writes(tuned: Tuned) -> None:
    check_warm_start(tuned.adapter, tuned.llm)
    assert tuned.losses[-1] < tuned.losses[0] - 0.3
    assert tuned.texts != reference(tuned.llm, None)
    assert sample("transformers", tuned) == tuned.texts


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="openvino-genai is for Linux")
def test_openvino_writes_what_plain_peft_writes(tuned: Tuned, tmp_path: Path) -> None:
    if tuned.name in WINDOWED:
        with pytest.raises(UsageError, match=r"attend to 16 tokens .*engine = 'transformers'"):
            sample("openvino", tuned)
        wide = random_of(tuned.name, tmp_path, sliding_window=200)  # the same weights
        tuned = tuned._replace(llm=wide, texts=reference(wide, tuned.adapter))
    assert sample("openvino", tuned) == tuned.texts
