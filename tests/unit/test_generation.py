"""Token choice, replay, and the registry: what needs no LLM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from archloop.config import RunConfig, resolve
from archloop.config.engines import ENGINES, EngineTraits
from archloop.errors import ConfigError, UsageError
from archloop.llm.generation import EngineSetup, build_generator
from archloop.llm.generation.sampling import choose_tokens, uniform_draws
from archloop.loop.pipeline import batches_of
from archloop.store.run_dir import RunDir
from archloop.store.store import Store
from archloop.types import Completion, Message, Request

LOGITS = torch.tensor([2.0, 0.5, 1.5, -1.0, 1.0])


def shares(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """Relative frequency of each token over 10,000 evenly spaced draws."""
    n = 10_000
    draws = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens = choose_tokens(
        logits.expand(n, -1), draws, temperature=temperature, top_k=top_k, top_p=top_p
    )
    return torch.bincount(tokens, minlength=len(logits)) / n


@pytest.mark.parametrize("temperature", [0.2, 0.8, 2.0])
def test_unfiltered_tokens_come_with_their_softmax_probability(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(-1)
    assert torch.allclose(shares(LOGITS, temperature, 0, 1.0), expected, atol=2e-4)


def test_top_k_keeps_the_likeliest_and_renormalises() -> None:
    expected = torch.zeros(5)
    expected[[0, 2]] = LOGITS[[0, 2]].softmax(-1)
    assert torch.allclose(shares(LOGITS, 1.0, 2, 1.0), expected, atol=2e-4)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, [0]), (0.47, [0, 2]), (0.90, [0, 2, 4, 1]), (1.0, [0, 2, 4, 1, 3])]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: list[int]) -> None:
    expected = torch.zeros(5)
    expected[kept] = LOGITS[kept].softmax(-1)
    assert torch.allclose(shares(LOGITS, 1.0, 0, top_p), expected, atol=2e-4)


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    """0.6 is reached by one token of the two kept (0.62 of their mass), not of all (0.46)."""
    assert shares(LOGITS, 1.0, 2, 0.6).nonzero().flatten().tolist() == [0]


def test_filters_agree_with_transformers() -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(200, generator=torch.Generator().manual_seed(3)) * 3
    scores = logits[None]
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(30), TopPLogitsWarper(0.8)):
        scores = warper(torch.zeros(1, 1, dtype=torch.long), scores)
    assert torch.allclose(shares(logits, 0.7, 30, 0.8), scores[0].softmax(-1), atol=2e-4)


def test_temperature_zero_is_greedy() -> None:
    assert shares(LOGITS, 0.0, 50, 0.9).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_the_largest_draw_stays_within_what_is_kept() -> None:
    draw = torch.tensor([1.0 - 2.0**-53], dtype=torch.float64)
    token = choose_tokens(LOGITS[None], draw, temperature=1.0, top_k=3, top_p=0.7)
    assert token.item() == 2


def test_rows_are_independent() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    draws = torch.rand(4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    together = choose_tokens(logits, draws, temperature=1.0, top_k=20, top_p=0.95)
    for row in range(4):
        part = slice(row, row + 1)
        alone = choose_tokens(logits[part], draws[part], temperature=1.0, top_k=20, top_p=0.95)
        assert alone.item() == together[row].item()


def test_draws_depend_on_the_seed_alone() -> None:
    first = uniform_draws(7, 100)
    torch.rand(13)
    assert torch.equal(first, uniform_draws(7, 100))
    assert not torch.equal(first, uniform_draws(8, 100))
    assert first.min() >= 0.0 and first.max() < 1.0


REPLAYED = {(1, 0): ("a", 3, "stop"), (1, 1): ("b", 9, "length"), (2, 0): ("c", 1, "stop")}


@pytest.fixture
def stored(tmp_path: Path) -> RunConfig:
    """A configuration that repeats a run of two cycles."""
    with Store(RunDir(tmp_path).database) as store:
        rows = [Completion(*at, *row) for at, row in REPLAYED.items()]  # type: ignore[arg-type]
        store.add_requests([request(*at) for at in REPLAYED])
        store.add_completions(rows)
    return resolve({"generation": {"engine": "replay", "replay_from": str(tmp_path)}})


def request(cycle: int, index: int, temperature: float = 1.0) -> Request:
    messages: tuple[Message, ...] = ({"role": "user", "content": "Write a network."},)
    return Request(cycle, index, 5, "digits", messages, temperature)


def test_replay_repeats_what_is_stored_of_any_cycle(stored: RunConfig) -> None:
    generator = build_generator(stored)
    generator.use(None)
    wanted = [(2, 0), (1, 1), (1, 0)]
    texts = list(generator.generate([request(*at) for at in wanted]))
    assert texts == [Completion(*at, *REPLAYED[at]) for at in wanted]  # type: ignore[arg-type]


def test_replay_refuses_before_the_first_text_if_one_is_missing(stored: RunConfig) -> None:
    answers = build_generator(stored).generate([request(1, i) for i in (0, 5, 6)])
    with pytest.raises(UsageError, match="no completion 5 stored.*2 of 3"):
        next(answers)


def test_the_replay_engine_needs_a_run_to_repeat(tmp_path: Path) -> None:
    config = resolve({"generation": {"engine": "replay", "replay_from": str(tmp_path / "none")}})
    with pytest.raises(UsageError, match=r"generation\.replay_from: no run in .*none"):
        build_generator(config)


class Echo:
    """An engine that answers with the seed: what a new one has to have, and no more."""

    def __init__(self, setup: EngineSetup) -> None:
        self.traits = setup.traits
        self._adapter: Path | None = None

    def use(self, adapter: Path | None) -> None:
        self._adapter = adapter

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for asked in requests:
            text = f"{asked.seed} {self._adapter}"
            yield Completion(asked.cycle, asked.index, text, 0, "stop")

    def close(self) -> None:
        pass


def test_a_new_engine_is_a_class_and_a_line_in_the_registry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree = {"generation": {"engine": "echo"}}
    with pytest.raises(ConfigError, match="generation.engine: allowed: 'transformers', .*'echo'"):
        resolve(tree)
    traits = EngineTraits(f"{__name__}:Echo", "continuous", loads_llm=False)
    monkeypatch.setitem(ENGINES, "echo", traits)
    config = resolve(tree)
    assert config.engine_traits is traits
    assert batches_of(config)[0] == range(4 * config.generation.batch_size)
    generator = build_generator(config)
    assert generator.traits is traits
    generator.use(Path("adapter"))
    assert [c.text for c in generator.generate([request(1, 0)])] == ["5 adapter"]


def test_engines_of_a_search_cannot_be_chosen() -> None:
    with pytest.raises(ConfigError, match="generation.engine: allowed: ") as error:
        resolve({"generation": {"engine": "grammar"}})
    assert "'grammar'," not in str(error.value)
    assert resolve({"search": {"type": "random"}}).engine == "grammar"


def test_rows_may_differ_in_temperature() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    draws = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    each = [1.0, 0.0, 0.3, 2.0, 0.0, 1.0]
    together = choose_tokens(logits, draws, temperature=each, top_k=20, top_p=0.95)
    for row, temperature in enumerate(each):
        part = slice(row, row + 1)
        alone = choose_tokens(
            logits[part], draws[part], temperature=temperature, top_k=20, top_p=0.95
        )
        assert alone.item() == together[row].item()
    assert together[1] == logits[1].argmax() and together[4] == logits[4].argmax()
