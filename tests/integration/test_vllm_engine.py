"""How the ``vllm`` engine uses vLLM, with a stand-in for its interface.

vLLM needs a CUDA GPU. The stand-in has the calls of vLLM 0.33 that the engine makes (``LLM``,
``LLMEngine.add_request``, ``step``, ``abort_request``) and writes a fixed number of tokens; what
the real one samples is not tested here.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from archloop.config import LLMConfig, resolve
from archloop.errors import MissingExtraError, UsageError
from archloop.llm.generation import Generator, build_generator
from archloop.llm.models import resolve_model
from archloop.types import Message, Request

PROMPT: tuple[Message, ...] = ({"role": "user", "content": "Hi"},)
END = 2


@dataclass
class Sampling:
    n: int
    seed: int
    temperature: float
    top_k: int
    top_p: float
    max_tokens: int
    stop_token_ids: list[int]
    detokenize: bool


@dataclass(frozen=True)
class Lora:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass
class Output:
    request_id: str
    token_ids: list[int]
    finished: bool = False

    @property
    def outputs(self) -> list[Output]:
        return [self]


@dataclass
class Engine:
    """Writes ``seed`` tokens for each request, the last an end token, or up to the limit."""

    added: list[tuple[str, dict[str, Any], Sampling, Lora | None]] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    running: dict[str, tuple[Output, Sampling]] = field(default_factory=dict)
    closed: bool = False

    def add_request(
        self, request_id: str, prompt: Any, params: Sampling, *, lora_request: Lora | None
    ) -> str:
        self.added.append((request_id, prompt, params, lora_request))
        self.running[request_id] = (Output(request_id, []), params)
        return request_id

    def step(self) -> list[Output]:
        for output, params in self.running.values():
            last = len(output.token_ids) + 1 == params.seed
            output.token_ids.append(END if last else 100)
            output.finished = last or len(output.token_ids) == params.max_tokens
        outputs = [output for output, _ in self.running.values()]
        self.running = {k: v for k, v in self.running.items() if not v[0].finished}
        return outputs

    def has_unfinished_requests(self) -> bool:
        return bool(self.running)

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for name in request_ids:
            del self.running[name]

    @property
    def engine_core(self) -> Engine:
        return self

    def shutdown(self) -> None:
        self.closed = True


class FakeLLM:
    made: list[dict[str, Any]] = []

    def __init__(self, **settings: Any) -> None:
        FakeLLM.made.append(settings)
        self.llm_engine = Engine()


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in in place of vLLM, and a GPU."""
    package: Any = types.ModuleType("vllm")
    package.LLM, package.SamplingParams = FakeLLM, Sampling
    package.__spec__ = types.SimpleNamespace()
    request: Any = types.ModuleType("vllm.lora.request")
    request.LoRARequest = Lora
    modules = {"vllm": package, "vllm.lora": types.ModuleType("lora"), "vllm.lora.request": request}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "archloop.llm.generation.vllm_engine", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    FakeLLM.made.clear()
    yield
    sys.modules.pop("archloop.llm.generation.vllm_engine", None)


def adapter(folder: Path, rank: int, **more: Any) -> Path:
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": rank} | more
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    weights = {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(rank, 4)
    }
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def build(adapter_dir: Path | None, **decoding: Any) -> Generator:
    settings = {"top_k": 40, "top_p": 0.9, "max_new_tokens": 6, "batch_size": 4}
    config = resolve(
        {
            "generation": {"engine": "vllm", **settings, **decoding},
            "vllm": {"gpu_memory_utilization": 0.4},
            "llm": {"dtype": "bfloat16"},
        }
    )
    generator = build_generator(config, model_dir=resolve_model(LLMConfig()))
    generator.use(adapter_dir)
    return generator


def request(
    index: int, seed: int, messages: tuple[Message, ...] = PROMPT, temperature: float = 0.8
) -> Request:
    return Request(1, index, seed, "digits", messages, temperature)


@pytest.mark.llm
@pytest.mark.usefixtures("vllm")
def test_requests_carry_seed_decoding_and_adapter(tmp_path: Path) -> None:
    generator: Any = build(adapter(tmp_path / "a", 16))
    texts = list(generator.generate([request(0, 5), request(1, 3), request(2, 99)]))
    assert [(t.index, t.n_tokens, t.finish_reason) for t in texts] == [
        (1, 3, "stop"),
        (0, 5, "stop"),
        (2, 6, "length"),
    ]
    (loaded,) = FakeLLM.made
    assert loaded["enable_lora"] and loaded["enable_prefix_caching"]
    assert (loaded["max_lora_rank"], loaded["max_num_seqs"], loaded["dtype"]) == (16, 4, "bfloat16")
    assert loaded["gpu_memory_utilization"] == 0.4
    added = generator._llm.llm_engine.added
    assert [params.seed for _, _, params, _ in added] == [5, 3, 99]
    assert all(params.stop_token_ids == [END] for _, _, params, _ in added)
    assert all(lora.lora_path == str(tmp_path / "a") for *_, lora in added)
    assert len({name for name, *_ in added}) == 3


@pytest.mark.llm
@pytest.mark.usefixtures("vllm")
def test_another_adapter_is_new_to_vllm_and_the_base_stays(tmp_path: Path) -> None:
    first, second = adapter(tmp_path / "a", 8), adapter(tmp_path / "b", 5)
    generator: Any = build(first)
    for folder in (first, second, None, first):
        generator.use(folder)
        list(generator.generate([request(0, 2)]))
    loras = [lora for *_, lora in generator._llm.llm_engine.added]
    assert [lora and lora.lora_int_id for lora in loras] == [2, 3, None, 4]
    assert len({lora.lora_name for lora in loras if lora}) == 3
    assert len(FakeLLM.made) == 1
    generator.use(adapter(tmp_path / "c", 32))
    assert [settings["max_lora_rank"] for settings in FakeLLM.made] == [8, 32]


@pytest.mark.llm
@pytest.mark.usefixtures("vllm")
def test_requests_may_differ_in_prompt_and_temperature() -> None:
    generator: Any = build(None)
    other: tuple[Message, ...] = ({"role": "user", "content": "Good morning"},)
    asked = [request(0, 2), request(1, 3, other, 0.0), request(2, 4, temperature=1.5)]
    assert {t.index for t in generator.generate(asked)} == {0, 1, 2}
    added = {
        params.seed: (prompt, params) for _, prompt, params, _ in generator._llm.llm_engine.added
    }
    assert {seed: params.temperature for seed, (_, params) in added.items()} == {
        2: 0.8,
        3: 0.0,
        4: 1.5,
    }
    assert (added[3][1].top_k, added[3][1].top_p) == (0, 1.0)
    assert added[2][0] == added[4][0] != added[3][0]


@pytest.mark.llm
@pytest.mark.usefixtures("vllm")
def test_what_nobody_waits_for_is_aborted() -> None:
    generator: Any = build(None)
    engine = generator._llm.llm_engine
    answers = generator.generate([request(0, 1), request(1, 50), request(2, 50)])
    next(answers)
    answers.close()
    assert engine.aborted == ["2", "3"]
    assert not engine.running
    generator.close()
    assert engine.closed


def bare(engine: str, dtype: str = "bfloat16") -> Generator:
    changes = {"openai": {"openai": {"base_url": "http://127.0.0.1:9/v1"}}}.get(engine, {})
    tree = {"generation": {"engine": engine}, "llm": {"dtype": dtype}}
    return build_generator(resolve(tree | {"finetune": {"enabled": False}} | changes))


@pytest.mark.usefixtures("vllm")
def test_without_a_gpu_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="needs a CUDA GPU.*openvino"):
        bare("vllm")


@pytest.mark.usefixtures("vllm")
def test_float32_is_refused() -> None:
    with pytest.raises(UsageError, match="bfloat16 only.*'transformers'"):
        bare("vllm", "float32")


@pytest.mark.parametrize(
    ("engine", "module", "install"),
    [
        ("vllm", "vllm", r"pip install 'archloop\[vllm\]'"),
        ("openai", "openai", r"pip install 'archloop\[openai\]'"),
        ("openvino", "openvino_genai", "pip install openvino-genai"),
    ],
)
def test_an_engine_that_is_not_installed_says_how_to(
    engine: Any, module: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=install):
        bare(engine)


@pytest.mark.llm
@pytest.mark.usefixtures("vllm")
def test_an_adapter_that_vllm_would_apply_in_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"leave out .*modules_to_save \[\"norm\"\].*'openvino'"):
        build(adapter(tmp_path / "a", 8, modules_to_save=["norm"]))
    with pytest.raises(UsageError, match=r'leave out .*rank_pattern {"q_proj": 32}'):
        build(adapter(tmp_path / "b", 8, rank_pattern={"q_proj": 32}))
