"""What is wrong with an LLM of one's own is said in one line that names the key to set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archloop.config import FinetuneConfig, resolve
from archloop.corpus.pairs import make_pair, write_pairs
from archloop.doctor.preflight import preflight
from archloop.errors import ConfigError, UsageError
from archloop.llm.adapter_files import check_warm_start
from archloop.llm.finetuning import FinetuneJob, lora
from archloop.llm.generation import build_generator
from archloop.llm.models import load_tokenizer, resolve_adapter
from archloop.search.prompts import CIFAR10, PromptTemplate
from archloop.types import Request
from conftest import network
from tiny_llm import random_of

PACKAGED = "smollm2-135m-lemur"
PROMPT = tuple(PromptTemplate().render(CIFAR10, 500_000))


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_of("llama", tmp_path_factory.mktemp("llm"))


@pytest.fixture
def changed(llm: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the LLM with other entries in its settings; ``None`` takes one out."""

    def make(file: str, **entries: Any) -> Path:
        folder = tmp_path / "own"
        if not folder.is_dir():
            shutil.copytree(llm, folder)
        settings = json.loads((folder / file).read_text()) | entries
        left = {key: value for key, value in settings.items() if value is not None}
        (folder / file).write_text(json.dumps(left))
        return folder

    return make


def generate(llm: Path) -> None:
    settings = {"engine": "transformers", "max_new_tokens": 2}
    generator = build_generator(
        resolve({"generation": settings, "llm": {"dtype": "float32"}}), model_dir=llm
    )
    generator.use(None)
    next(iter(generator.generate([Request(1, 0, 0, "digits", PROMPT, 0.0)])))


def tune(llm: Path, tmp_path: Path, **changes: Any) -> tuple[dict[str, Any], list[str]]:
    """The answer of a fine-tune of one step, and what it said."""
    short, long = network(), network(init="; ".join(["self.n = 1"] * 40))
    write_pairs(tmp_path / "corpus.jsonl", [make_pair(PROMPT, code, {}) for code in (short, long)])
    options = {"lora_r": 2, "max_steps": 1, "max_length": 4096, "lora_dropout": 0.0}
    config = FinetuneConfig(**(options | changes))
    notes: list[str] = []
    job = FinetuneJob(llm, tmp_path / "corpus.jsonl", tmp_path / "out", config, "float32", 0)
    done = lora.run(
        job.to_json(), lambda event, data: notes.append(data["text"]) if event == "note" else None
    )
    return done, notes


def test_a_tokenizer_of_another_llm_is_found(changed: Callable[..., Path], tmp_path: Path) -> None:
    folder = random_of("llama", tmp_path / "small", vocab_size=200)
    said = r"llm\.model: the tokenizer in .* makes token \d+, but the LLM has embeddings for 200"
    with pytest.raises(UsageError, match=said):
        generate(folder)
    with pytest.raises(UsageError, match=said):
        tune(folder, tmp_path)


def test_an_end_token_is_taken_from_where_it_is_named(
    changed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = changed("tokenizer_config.json", eos_token=None)
    assert load_tokenizer(folder).eos_token == "<|im_end|>"
    changed("generation_config.json", eos_token_id=None)
    assert load_tokenizer(folder).eos_token == "<|im_end|>"
    changed("config.json", eos_token_id=None)
    said = "names no end token; set eos_token in its tokenizer_config.json"
    with pytest.raises(UsageError, match=said):
        generate(folder)
    with pytest.raises(UsageError, match=said):
        tune(folder, tmp_path)


def test_quantised_weights_are_refused(changed: Callable[..., Path], tmp_path: Path) -> None:
    folder = changed("config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    said = r"llm\.model: the weights in .* are quantised \(gptq\).*finetune\.quantization = 'nf4'"
    with pytest.raises(UsageError, match=said):
        generate(folder)
    with pytest.raises(UsageError, match=said):
        tune(folder, tmp_path)


def test_pairs_above_the_context_are_left_out_and_counted(
    changed: Callable[..., Path], tmp_path: Path
) -> None:
    _, told = tune(changed("config.json"), tmp_path)
    assert "left out" not in str(told)
    shutil.rmtree(tmp_path / "out")
    tokens = len(load_tokenizer(tmp_path / "own")(network())["input_ids"])
    done, told = tune(changed("config.json", max_position_embeddings=3 * tokens), tmp_path)
    assert (done["n_pairs"], done["n_too_long"]) == (1, 1)
    assert "1 pairs are left out, longer than the LLM's context" in str(told)
    done, _ = tune_nothing(changed("config.json", max_position_embeddings=100), tmp_path)
    assert done["nothing_to_learn"].endswith(
        "no pair within the LLM's context of 100 tokens; set seeds.max_tokens for shorter seeds"
    )


def tune_nothing(folder: Path, tmp_path: Path) -> tuple[dict[str, Any], list[str]]:
    shutil.rmtree(tmp_path / "out")
    return tune(folder, tmp_path)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_packaged_adapter_on_another_llm_is_refused_before_a_run_begins(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHLOOP_CACHE", str(tmp_path / "cache"))
    own = random_of(architecture, tmp_path / "own")
    tree = {
        "llm": {"model": str(own), "warm_start": PACKAGED, "dtype": "float32"},
        "seeds": {"source": "packaged", "path": PACKAGED},
        "generation": {"engine": "transformers", "max_new_tokens": 1024},
        "task": {"name": "digits"},
    }
    with pytest.raises(UsageError, match=r'does not fit the LLM: .*llm\.warm_start = "none"'):
        preflight(resolve(tree))
    with pytest.raises(UsageError, match=r'does not fit the LLM: .*llm\.warm_start = "none"'):
        check_warm_start(resolve_adapter(PACKAGED), own)
    tree["llm"].pop("warm_start")  # type: ignore[attr-defined]
    preflight(resolve(tree))
    tree["generation"]["max_new_tokens"] = 2048  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"generation\.max_new_tokens: 2048, .* context of \d+"):
        preflight(resolve(tree))
