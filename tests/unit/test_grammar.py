"""The grammar of the random baseline: the same text for a seed, within the budget, as counted."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from archloop.code.policy import check
from archloop.config import SandboxConfig
from archloop.errors import UsageError
from archloop.evaluation.executor import Probe, build_executor, in_order
from archloop.search.grammar import count_params, draw, render, write_network

CIFAR = (3, 32, 32)


def test_a_seed_decides_the_text_and_the_text_keeps_the_contract() -> None:
    texts = [
        write_network(seed, shape=CIFAR, classes=10, max_params=500_000) for seed in range(100)
    ]
    assert texts == [
        write_network(seed, shape=CIFAR, classes=10, max_params=500_000) for seed in range(100)
    ]
    assert len(set(texts)) == 100
    assert [fault for text in texts if (fault := check(text)) is not None] == []


@pytest.mark.parametrize("budget", [2_000, 20_000, 100_000, 500_000, 10**9])
def test_every_design_fits_into_the_budget(budget: int) -> None:
    designs = [draw(random.Random(seed), CIFAR, 10, budget) for seed in range(200)]
    assert max(map(count_params, designs)) <= budget


def test_a_budget_below_the_smallest_network_is_refused() -> None:
    with pytest.raises(UsageError, match=r"task\.max_params: 50; the smallest network"):
        write_network(1, shape=CIFAR, classes=10, max_params=50)


def test_choices_are_uniform() -> None:
    rng = random.Random(0)
    blocks = [b for _ in range(2000) for b in draw(rng, CIFAR, 10, 10**9).blocks]
    for name in ("kind", "width", "kernel"):
        counts = Counter(getattr(block, name) for block in blocks)
        expected = len(blocks) / len(counts)
        assert max(abs(n - expected) for n in counts.values()) < 0.1 * expected, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "classes"), [(CIFAR, 10), ((1, 8, 8), 4), ((3, 64, 48), 100), ((2, 9, 7), 3)]
)
def test_networks_build_in_the_sandbox_and_have_the_size_that_was_counted(
    shape: tuple[int, int, int], classes: int
) -> None:
    designs = [draw(random.Random(seed), shape, classes, 300_000) for seed in range(15)]
    jobs = [Probe(render(design), shape, classes) for design in designs]
    with build_executor(SandboxConfig()) as executor:
        verdicts = list(in_order(executor, jobs))
    assert [v.error for v in verdicts] == [None] * len(designs)
    assert [v.n_params for v in verdicts] == list(map(count_params, designs))
