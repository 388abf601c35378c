"""The local engines on a tiny random LLM with a real adapter."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from archloop.config import resolve
from archloop.errors import ArchloopError, UsageError
from archloop.llm.generation import build_generator
from archloop.llm.generation.generator import Generator, nobody
from archloop.llm.generation.language_model import ChatTokenizer, load_language_model
from archloop.types import Completion, Message, Request

ENGINES = [
    "transformers",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(sys.platform != "linux", reason="openvino-genai is for Linux"),
    ),
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPT = "Write a small network."


def prompt(text: str = PROMPT) -> tuple[Message, ...]:
    return ({"role": "system", "content": "You design."}, {"role": "user", "content": text})


def request(index: int, seed: int, text: str = PROMPT, temperature: float = 1.0) -> Request:
    return Request(1, index, seed, "digits", prompt(text), temperature)


REQUESTS = [request(index, 100 + index) for index in range(7)]


def save_tokenizer(folder: Path) -> None:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["import torch", "class Net(nn.Module):", "self.conv"] * 5, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this module's own, also for the converted LLM."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("ARCHLOOP_CACHE", str(folder))
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with grouped queries; its end token is as likely as any."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=280,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.15,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter that changes every kind of projection."""
    folder = tmp_path_factory.mktemp("adapter")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
    return save_adapter(tiny, folder, LoraConfig(r=4, lora_alpha=8, target_modules=targets))


def save_adapter(model_dir: Path, folder: Path, config: LoraConfig, scale: float = 0.2) -> Path:
    torch.manual_seed(1)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=scale) if scale else weight.zero_()
    adapted.save_pretrained(folder)
    return folder


def build(
    engine: Any,
    model_dir: Path,
    adapter_dir: Path | None,
    dtype: str = "float32",
    *,
    tell: Any = nobody,
    **settings: Any,
) -> Generator:
    defaults = {"top_k": 0, "top_p": 1.0, "max_new_tokens": 60, "batch_size": 3}
    decoding = {"engine": engine, **defaults, **settings}
    config = resolve({"generation": decoding, "llm": {"dtype": dtype}})
    generator = build_generator(config, model_dir=model_dir, tell=tell)
    generator.use(adapter_dir)
    return generator


def sample(generator: Generator, requests: list[Request] = REQUESTS) -> list[Completion]:
    return sorted(generator.generate(requests), key=lambda text: text.index)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_request_is_answered_once_and_repeatably(
    engine: str, tiny: Path, adapter: Path
) -> None:
    told: list[int] = []
    generator = build(engine, tiny, adapter, tell=told.append)
    texts = sample(generator)
    assert [(text.cycle, text.index) for text in texts] == [(1, index) for index in range(7)]
    assert sum(told) == sum(text.n_tokens for text in texts), "tokens are told as they come"
    assert len(told) > 50, "at every step"
    assert sample(generator) == texts
    generator.close()
    assert sample(build(engine, tiny, adapter)) == texts


def test_openvino_refuses_an_llm_with_a_shorter_window_than_its_answers(
    tiny: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino_genai")
    folder = shutil.copytree(tiny, tmp_path / "windowed")
    settings = json.loads((folder / "config.json").read_text())
    length = len(ChatTokenizer(tiny).encode(prompt())) + 60
    for window in (length, length - 1, 59):
        changed = {"sliding_window": window, "layer_types": ["full_attention", "sliding_attention"]}
        (folder / "config.json").write_text(json.dumps(settings | changed))
        if window == length:
            assert len(sample(build("openvino", folder, None))) == len(REQUESTS)
            continue
        with pytest.raises(UsageError, match=rf"attend to {window} tokens .*engine = 'transf"):
            sample(build("openvino", folder, None))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_llm_with_a_shorter_context_than_its_answers_is_refused(
    engine: str, tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "short")
    settings = json.loads((folder / "config.json").read_text())
    length = len(ChatTokenizer(tiny).encode(prompt()))
    said = {
        length + 60: None,
        length + 59: rf"max_new_tokens: 60, .*context of {length + 59} .* {length}; at most 59",
        length: r"shorten prompt\.system and prompt\.user",
    }
    for context, wrong in said.items():
        changed = settings | {"max_position_embeddings": context}
        (folder / "config.json").write_text(json.dumps(changed))
        generator = build(engine, folder, None)
        if wrong is None:
            assert len(sample(generator)) == len(REQUESTS)
            continue
        with pytest.raises(UsageError, match=wrong):
            sample(generator)


@pytest.mark.parametrize("engine", ENGINES)
def test_seeds_decide_and_neighbours_do_not(engine: str, tiny: Path, adapter: Path) -> None:
    """In float32 a sequence is the same alone, also after neighbours have left its batch."""
    requests = [request(index, 100 + index) for index in range(8)]
    generator = build(engine, tiny, adapter, max_new_tokens=150, batch_size=8)
    texts = sample(generator, requests)
    assert len({text.text for text in texts}) == len(texts)
    assert len({text.n_tokens for text in texts}) > 2
    for text in texts:
        assert list(generator.generate([requests[text.index]])) == [text]


@pytest.mark.parametrize("engine", ENGINES)
def test_length_and_finish_reason_are_exact(engine: str, tiny: Path) -> None:
    """The random LLM ends about one sequence in two within 150 tokens: both kinds are seen."""
    requests = [request(index, index) for index in range(24)]
    generator = build(engine, tiny, None, max_new_tokens=150, batch_size=8)
    texts = sample(generator, requests)
    stopped = [text for text in texts if text.finish_reason == "stop"]
    cut = [text for text in texts if text.finish_reason == "length"]
    assert stopped and cut
    assert all(text.n_tokens == 150 for text in cut)
    assert all(text.n_tokens <= 150 for text in stopped)
    assert not any("<|im_" in text.text for text in stopped)
    # Cut just before its end token, and just after it: the same text, one token less or as many.
    shortest = min(stopped, key=lambda text: text.n_tokens)
    assert shortest.n_tokens > 1
    for limit, reason in ((shortest.n_tokens - 1, "length"), (shortest.n_tokens, "stop")):
        (text,) = build(engine, tiny, None, max_new_tokens=limit, batch_size=8).generate(
            [requests[shortest.index]]
        )
        assert (text.text, text.n_tokens, text.finish_reason) == (shortest.text, limit, reason)


MIXED = [
    request(index, 200 + index, text, temperature)
    for index, (text, temperature) in enumerate(
        (text, temperature)
        for text in (PROMPT, "Name a layer.")
        for temperature in (1.0, 0.0, 0.4, 1.0)
    )
]
"""Two prompts, each greedy and at two temperatures."""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mixed_batch_gives_what_each_request_gives_alone(
    engine: str, tiny: Path, adapter: Path
) -> None:
    """In float32, whatever prompts and temperatures are beside it, in whatever order."""
    generator = build(engine, tiny, adapter, max_new_tokens=40, batch_size=8)
    shuffled = [MIXED[i] for i in (5, 0, 7, 2, 1, 4, 6, 3)]
    together = sample(generator, shuffled)
    assert [text.index for text in together] == list(range(8))
    assert [list(generator.generate([one]))[0] for one in MIXED] == together
    greedy, other = together[1], together[5]
    for answer, text in ((greedy, PROMPT), (other, "Name a layer.")):
        tokens = greedy_reference(tiny, adapter, text, 40)
        assert answer == ChatTokenizer(tiny).finish(MIXED[answer.index], tokens)
    same_seed = [request(0, 7), request(1, 7, temperature=0.4), request(2, 8)]
    assert len({text.text for text in sample(generator, same_seed)}) == 3


@pytest.mark.parametrize("engine", ENGINES)
def test_another_adapter_gives_what_a_fresh_load_gives(
    engine: str, tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    """Weights are merged anew: nothing of the adapter before is left in them."""
    other = save_adapter(tiny, tmp_path, LoraConfig(r=2, target_modules=["v_proj"]), scale=0.3)
    generator, texts = build(engine, tiny, None), []
    for chosen in (adapter, other, None, adapter):
        generator.use(chosen)
        texts.append(sample(generator))
    fresh = [sample(build(engine, tiny, chosen)) for chosen in (adapter, other, None)]
    assert texts == [*fresh, fresh[0]]
    assert len({tuple(text.text for text in one) for one in fresh}) == 3


def greedy_reference(model_dir: Path, adapter_dir: Path | None, text: str, n: int) -> list[int]:
    """Greedy tokens of transformers' own ``generate``, with the adapter attached, not merged."""
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    if adapter_dir:
        model = PeftModel.from_pretrained(model, adapter_dir)
    ids = torch.tensor([ChatTokenizer(model_dir).encode(prompt(text))])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n
    )
    return [int(token) for token in out[0, ids.shape[1] :]]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("adapted", [False, True])
def test_greedy_text_is_that_of_transformers(
    engine: str, adapted: bool, tiny: Path, adapter: Path
) -> None:
    chosen = adapter if adapted else None
    generator = build(engine, tiny, chosen, max_new_tokens=40)
    for text in ("Write a small network.", "x", "Dataset: CIFAR-10. At most 500,000 parameters."):
        asked = request(0, 1, text, temperature=0.0)
        (answer,) = generator.generate([asked])
        tokens = greedy_reference(tiny, chosen, text, 40)
        assert answer == ChatTokenizer(tiny).finish(asked, tokens)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_adapter_changes_the_texts_in_bfloat16(engine: str, tiny: Path, adapter: Path) -> None:
    base = [text.text for text in sample(build(engine, tiny, None, "bfloat16"))]
    adapted = [text.text for text in sample(build(engine, tiny, adapter, "bfloat16"))]
    assert not set(base) & set(adapted)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_iterator_closed_early_leaves_the_generator_usable(engine: str, tiny: Path) -> None:
    generator = build(engine, tiny, None)
    expected = sample(generator)
    answers = generator.generate(REQUESTS)
    assert next(answers) in expected
    answers.close()  # type: ignore[attr-defined]
    assert sample(generator) == expected


class CountingSteps:
    """A real pipeline that counts its steps."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline, self.steps = pipeline, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def step(self) -> None:
        self.steps += 1
        self.pipeline.step()


def test_openvino_does_not_finish_what_nobody_waits_for(tiny: Path) -> None:
    pytest.importorskip("openvino_genai")
    generator: Any = build("openvino", tiny, None, max_new_tokens=1900, batch_size=4)
    counting = CountingSteps(generator._pipeline)
    generator._pipeline = counting
    answers = generator.generate([request(index, index) for index in range(12)])
    next(answers)
    before = counting.steps
    answers.close()
    assert counting.steps - before <= 2
    assert not counting.has_non_finished_requests()


@pytest.mark.parametrize("engine", ENGINES)
def test_close_releases_the_model(engine: str, tiny: Path) -> None:
    generator = build(engine, tiny, None)
    held: Any = generator
    model = weakref.ref(held._model if engine == "transformers" else held._pipeline)
    generator.close()
    gc.collect()
    assert model() is None


@pytest.mark.parametrize("engine", ENGINES)
def test_an_adapter_without_effect_is_refused(engine: str, tiny: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"])
    folder = save_adapter(tiny, tmp_path, config, scale=0.0)
    with pytest.raises(UsageError, match="has no effect"):
        build(engine, tiny, folder)


def altered(adapter: Path, folder: Path, change: Any) -> Path:
    """A copy of the adapter with its tensors passed through ``change(name, tensor)``."""
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    file = folder / "adapter_model.safetensors"
    save_file(dict(change(*item) for item in load_file(file).items()), file)
    return folder


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda name, x: (name.replace("model.layers", "blocks"), x), "does not fit"),
        (lambda name, x: (name, x[:, :-1].contiguous()), "does not fit"),
        (lambda name, x: (name, x * float("nan")), "not finite"),
    ],
    ids=["renamed", "reshaped", "not finite"],
)
def test_a_broken_adapter_is_refused(
    change: Any, reason: str, tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = altered(adapter, tmp_path, change)
    with pytest.raises(UsageError, match=reason):
        load_language_model(tiny, folder, torch.float32)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{}", "llm: cannot be loaded: .*model_type"),
        ("model.safetensors", "hi", r"model\.safetensors: no weights"),
        ("model.safetensors", None, r"llm: cannot be loaded: .*no file named model\.safetensors"),
        ("tokenizer.json", "no", r"tokenizer\.json: no JSON"),
        ("generation_config.json", "no", r"generation_config\.json: no JSON"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_llm_is_named(
    engine: str, name: str, content: str | None, said: str, tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(tiny, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(UsageError, match=said):
        build(engine, folder, None)


def test_weights_of_another_size_than_configured_are_named(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 80}))
    with pytest.raises(UsageError, match="cannot be loaded: .*mismatch"):
        load_language_model(tmp_path, None, torch.float32)


def test_an_unknown_kind_of_adapter_is_named(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "LARO"}))
    with pytest.raises(UsageError, match="adapter does not fit the LLM: 'LARO'"):
        load_language_model(tiny, tmp_path, torch.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="openvino-genai is for Linux")
def test_merged_weights_that_a_kill_left_are_removed(
    tiny: Path, adapter: Path, cache: Path
) -> None:
    left = cache / ".merged-left"
    left.mkdir(parents=True)
    (left / "openvino_model.bin").write_bytes(b"half")
    build("openvino", tiny, adapter).close()
    assert list(cache.glob(".merged-*")) == []


def test_a_folder_without_adapter_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no adapter_config"):
        load_language_model(tiny, tmp_path, torch.float32)


def test_only_the_changed_weights_are_named(tiny: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["v_proj"], layers_to_transform=[1])
    folder = save_adapter(tiny, tmp_path, config)
    model, changed = load_language_model(tiny, folder, torch.float32)
    base, none = load_language_model(tiny, None, torch.float32)
    assert changed == {"model.layers.1.self_attn.v_proj.weight"}
    assert none == frozenset()
    original = dict(base.named_parameters())
    differing = {n for n, w in model.named_parameters() if not torch.equal(w, original[n])}
    assert differing == changed


def test_prompt_tokens_are_those_of_the_rendered_template(tiny: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny)
    rendered = tokenizer.apply_chat_template(prompt(), add_generation_prompt=True, tokenize=False)
    ids = ChatTokenizer(tiny).encode(prompt())
    assert ids == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids[-13:]).endswith("<|im_start|>assistant\n")


def test_a_tokenizer_that_loses_white_space_is_refused(tiny: Path, tmp_path: Path) -> None:
    """As transformers 5.10 to 5.21 loads DeepSeek-Coder's."""
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    changed = json.loads(file.read_text()) | {"pre_tokenizer": {"type": "Whitespace"}}
    file.write_text(json.dumps(changed))
    with pytest.raises(UsageError, match=r"makes 'deff\(x\):returnx\+1' of 'def f.*5\.22 or newer"):
        ChatTokenizer(tmp_path)


def test_end_tokens_of_the_generation_settings_count_too(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    tokenizer = ChatTokenizer(tmp_path)
    assert tokenizer.end_ids == {1, 7}
    assert tokenizer.finish(request(0, 0), [40, 41, 7]).finish_reason == "stop"
    assert tokenizer.finish(request(0, 0), [40, 41, 42]).finish_reason == "length"


def test_the_conversion_is_cached_by_content(tiny: Path, tmp_path: Path) -> None:
    conversion = pytest.importorskip("archloop.llm.generation.openvino_conversion")
    first = conversion.converted_base(tiny)
    written = (first / conversion.IR_NAME).stat().st_mtime_ns
    assert conversion.converted_base(tiny) == first
    assert (first / conversion.IR_NAME).stat().st_mtime_ns == written
    other = tmp_path / tiny.name
    shutil.copytree(tiny, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1.0
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert conversion.converted_base(other) != first


def test_a_wrong_conversion_is_found(tiny: Path) -> None:
    conversion = pytest.importorskip("archloop.llm.generation.openvino_conversion")
    import openvino as ov

    graph = ov.Core().read_model(conversion.converted_base(tiny) / conversion.IR_NAME)
    model, _ = load_language_model(tiny, None, torch.float32)
    conversion._check_logits(graph, model)
    model.model.rotary_emb.inv_freq *= 0.5  # what a lost RoPE base does
    with pytest.raises(ArchloopError, match="conversion is wrong"):
        conversion._check_logits(graph, model)


def test_openvino_samples_from_the_filtered_distribution(tiny: Path) -> None:
    """First tokens of 600 seeds: none outside top-k 4, and shares within 5 standard errors."""
    pytest.importorskip("openvino_genai")
    settings: dict[str, Any] = {"top_k": 4, "top_p": 0.97}
    generator = build("openvino", tiny, None, max_new_tokens=1, batch_size=64, **settings)
    n = 600
    texts = [x.text for x in generator.generate([request(i, i, temperature=0.7) for i in range(n)])]
    model, _ = load_language_model(tiny, None, torch.float32)
    tokenizer = ChatTokenizer(tiny)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer.encode(prompt())])).logits[0, -1]
    values, tokens = (logits / 0.7).topk(4)
    shares = values.softmax(-1)
    shares = shares * (shares.cumsum(-1) - shares < 0.97)
    shares /= shares.sum()
    expected: dict[str, float] = {}  # several tokens are the same text: parts of a character
    for token, share in zip(tokens, shares, strict=True):
        text = tokenizer.finish(request(0, 0), [int(token)]).text
        expected[text] = expected.get(text, 0.0) + float(share)
    assert len(expected) > 1
    assert set(texts) <= {text for text, share in expected.items() if share > 0}
    for text, share in expected.items():
        error = np.sqrt(share * (1 - share) / n)
        assert texts.count(text) / n == pytest.approx(share, abs=5 * error)
