"""The engines write the same text with the embedded LLM and its packaged adapter."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from archloop.config import LLMConfig, resolve
from archloop.llm.generation import Generator, build_generator
from archloop.llm.models import resolve_adapter, resolve_model
from archloop.types import Message, Request

QUESTIONS = [
    "Write a PyTorch network.",
    "What is a convolution?",
    "List three primes.",
    *(
        f"Write a network for {data} with at most {budget} parameters."
        for data in ("MNIST", "CIFAR-10", "SVHN", "28x28 grey images")
        for budget in ("10,000", "100,000", "500,000")
    ),
    "Write nn.Sequential with two linear layers.",
    "Explain dropout in one sentence.",
    "Name an optimiser.",
    "What does BatchNorm2d do?",
    "Write a function that adds two numbers.",
]


def agreement(ours: list[str], theirs: list[str], model_dir: Path) -> float:
    """The share of tokens that are the same at the same place."""
    encode = PreTrainedTokenizerFast.from_pretrained(model_dir).encode
    pairs = [(encode(a), encode(b)) for a, b in zip(ours, theirs, strict=True)]
    same = sum(x == y for a, b in pairs for x, y in zip(a, b, strict=False))
    return same / sum(max(len(a), len(b)) for a, b in pairs)


def build(engine: Any, model_dir: Path, adapter_dir: Path | None, dtype: str = "float32") -> Any:
    config = resolve(
        {"generation": {"engine": engine, "max_new_tokens": 8}, "llm": {"dtype": dtype}}
    )
    generator = build_generator(config, model_dir=model_dir)
    generator.use(adapter_dir)
    return generator


def request(question: str, index: int = 0, seed: int = 0, temperature: float = 0.0) -> Request:
    messages: tuple[Message, ...] = ({"role": "user", "content": question},)
    return Request(1, index, seed, "digits", messages, temperature)


def greedy(generator: Generator, questions: list[str]) -> list[str]:
    return [next(iter(generator.generate([request(q)]))).text for q in questions]


def answers(
    engine: Any,
    model_dir: Path,
    adapter_dir: Path | None,
    questions: list[str] = QUESTIONS,
    dtype: str = "float32",
) -> list[str]:
    generator = build(engine, model_dir, adapter_dir, dtype)
    texts = greedy(generator, questions)
    generator.close()
    return texts


@pytest.mark.llm
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="openvino-genai is for Linux")
def test_openvino_writes_what_transformers_writes() -> None:
    """Greedy, float32, 20 prompts: at least 95 % of the tokens agree, and not without the adapter.

    A sequence that once takes the other of two tokens as likely differs from there on.
    """
    model_dir, adapter_dir = resolve_model(LLMConfig()), resolve_adapter("smollm2-135m-lemur")
    assert len(set(QUESTIONS)) == 20
    reference = answers("transformers", model_dir, adapter_dir)
    applied = answers("openvino", model_dir, adapter_dir)
    assert agreement(applied, reference, model_dir) >= 0.95
    unapplied = answers("openvino", model_dir, None, QUESTIONS[:3])
    assert agreement(unapplied, reference[:3], model_dir) < 0.8


def with_trained_norms(model_dir: Path, folder: Path) -> Path:
    """The packaged adapter with all norms of the LLM beside it, as ``modules_to_save`` has them.

    Each is scaled by a factor of its own, so that an engine that leaves them out writes otherwise.
    """
    shutil.copytree(resolve_adapter("smollm2-135m-lemur"), folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["modules_to_save"] = ["norm"]  # every module whose name ends so
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = load_file(folder / "adapter_model.safetensors")
    torch.manual_seed(0)
    for name, weight in load_file(model_dir / "model.safetensors").items():
        if name.endswith("norm.weight"):
            scale = 1 + 0.3 * torch.randn(weight.shape)
            tensors[f"base_model.model.{name}"] = (weight.float() * scale).to(torch.bfloat16)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.llm
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="openvino-genai is for Linux")
def test_openvino_applies_fully_trained_modules_as_transformers_does(tmp_path: Path) -> None:
    """tests/integration/test_whole_adapters.py does so with every part, on a tiny LLM."""
    model_dir = resolve_model(LLMConfig())
    whole = with_trained_norms(model_dir, tmp_path / "whole")
    reference = answers("transformers", model_dir, whole, QUESTIONS[:6])
    applied = answers("openvino", model_dir, whole, QUESTIONS[:6])
    assert agreement(applied, reference, model_dir) >= 0.95
    plain = answers("transformers", model_dir, resolve_adapter("smollm2-135m-lemur"), QUESTIONS[:6])
    assert agreement(plain, reference, model_dir) < 0.8


@pytest.mark.gpu
@pytest.mark.llm
@pytest.mark.slow
@pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("vllm") is None, reason="needs a CUDA GPU and vLLM"
)
def test_vllm_writes_what_transformers_writes() -> None:
    """As above, in bfloat16, whose rounding leaves fewer tokens the same.

    The adapter changes while the base stays, and a seed decides its own answer alone.
    """
    model_dir, adapter_dir = resolve_model(LLMConfig()), resolve_adapter("smollm2-135m-lemur")
    reference = answers("transformers", model_dir, adapter_dir, dtype="bfloat16")
    bare = answers("transformers", model_dir, None, QUESTIONS[:3], "bfloat16")
    generator = build("vllm", model_dir, adapter_dir, "bfloat16")
    try:
        applied = greedy(generator, QUESTIONS)
        assert agreement(applied, reference, model_dir) >= 0.9
        generator.use(None)
        unapplied = greedy(generator, QUESTIONS[:3])
        assert agreement(unapplied, bare, model_dir) >= 0.9
        assert agreement(unapplied, reference[:3], model_dir) < 0.8
        generator.use(adapter_dir)
        again = greedy(generator, QUESTIONS[:3])
        assert agreement(again, applied[:3], model_dir) >= 0.9
        generator.use(None)
        sampled = [request("Explain dropout.", i, 5 + i, temperature=1.0) for i in range(2)]
        together = {t.index: t.text for t in generator.generate(sampled)}
        (alone,) = generator.generate(sampled[:1])
        assert alone.text == together[0] != together[1]
    finally:
        generator.close()
