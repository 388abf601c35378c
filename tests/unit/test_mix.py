"""What a fine-tune sees of the corpus."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from archloop.search import mix
from archloop.types import ChatPair, Message


def pair(name: str, **meta: object) -> ChatPair:
    message = Message(role="user", content=name)
    return ChatPair(name, (message, message, message), meta)


SEEDS = [pair(f"seed{i}", lemur_first_epoch_accuracy=0.3) for i in range(20)]
OLD = [pair(f"old{i}", generated=True, cycle=1, first_epoch_accuracy=0.4) for i in range(20)]
NEW = [pair(f"new{i}", generated=True, cycle=2, first_epoch_accuracy=0.4) for i in range(5)]
CORPUS = [*SEEDS, *OLD, *NEW]


def replayed(
    replay: int, seeds: int | None, weighting: mix.Weighting = "none", seed: int = 0
) -> list[str]:
    found = mix.new_and_replayed(
        CORPUS,
        {2},
        replay=replay,
        replay_seeds=seeds,
        weighting=weighting,
        rng=random.Random(seed),
    )
    return [p.id for p in found]


@pytest.mark.parametrize(("seeds", "kept"), [(0, 0), (3, 3), (50, 12)])
def test_new_pairs_come_once_and_seeds_are_limited(seeds: int, kept: int) -> None:
    found = replayed(12, seeds)
    assert found[:5] == [p.id for p in NEW]
    assert len(found) == len(set(found)) == 17
    assert sum(name.startswith("seed") for name in found) == kept


def test_without_a_limit_the_sample_falls_as_it_falls() -> None:
    kinds = Counter(name[:3] for seed in range(50) for name in replayed(12, None, seed=seed)[5:])
    assert 200 < kinds["see"] < 400
    assert kinds["see"] + kinds["old"] == 600


def test_what_a_rejected_fine_tune_should_have_taught_is_still_new() -> None:
    found = mix.new_and_replayed(
        CORPUS, {1, 2}, replay=3, replay_seeds=None, weighting="none", rng=random.Random(0)
    )
    assert [p.id for p in found[:25]] == [p.id for p in [*OLD, *NEW]]
    assert all(p.id.startswith("seed") for p in found[25:])


def test_nothing_new_is_nothing_to_learn() -> None:
    found = mix.new_and_replayed(
        CORPUS, {3}, replay=5, replay_seeds=None, weighting="none", rng=random.Random(0)
    )
    assert found == []


def test_accurate_networks_are_drawn_more_often() -> None:
    good = [pair(f"good{i}", first_epoch_accuracy=0.5) for i in range(50)]
    poor = [pair(f"poor{i}", first_epoch_accuracy=0.45) for i in range(50)]
    unknown = [pair(f"none{i}") for i in range(50)]
    counts: Counter[str] = Counter()
    for seed in range(20):
        drawn = mix.sample([*poor, *good, *unknown], 10, "accuracy", random.Random(seed))
        counts.update(p.id[:4] for p in drawn)
    assert counts["good"] > 3 * counts["poor"]
    assert counts["poor"] < counts["none"] < counts["good"]
    drawn = mix.whole_corpus([*poor, *good], "accuracy", random.Random(0))
    assert len(drawn) == 100
    assert sum(p.id.startswith("good") for p in drawn) > 70
    assert mix.whole_corpus(poor, "none", random.Random(0)) == poor
    assert mix.whole_corpus([], "accuracy", random.Random(0)) == []
