"""Token choice, replay, and the registry: what needs no LLM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from archloop.config import GenerationConfig
from archloop.errors import UsageError
from archloop.llm.generation import StoredText, build_generator
from archloop.llm.generation.replay import ReplayGenerator
from archloop.llm.generation.sampling import choose_tokens, uniform_draws
from archloop.types import Message

PROMPT: list[Message] = [{"role": "user", "content": "Write a network."}]
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


STORED: dict[int, StoredText] = {0: ("a", 3, "stop"), 1: ("b", 9, "length")}


def test_replay_repeats_what_is_stored() -> None:
    texts = list(ReplayGenerator(STORED).generate(PROMPT, [(1, 11), (0, 10)]))
    assert [(t.index, t.seed, t.text, t.n_tokens, t.finish_reason) for t in texts] == [
        (1, 11, "b", 9, "length"),
        (0, 10, "a", 3, "stop"),
    ]


def test_replay_refuses_before_the_first_text_if_one_is_missing() -> None:
    answers = ReplayGenerator(STORED).generate(PROMPT, [(0, 1), (5, 1), (6, 1)])
    with pytest.raises(UsageError, match="no completion 5 stored.*2 of 3"):
        next(answers)


def test_the_replay_engine_needs_something_to_repeat() -> None:
    config = GenerationConfig(engine="replay", replay_from="somewhere")
    with pytest.raises(UsageError, match="no stored completions"):
        build_generator(config, model_dir=Path(), adapter_dir=None, dtype="float32")
    generator = build_generator(
        config, model_dir=Path(), adapter_dir=None, dtype="float32", stored=STORED
    )
    assert next(generator.generate(PROMPT, [(0, 4)])).text == "a"
