"""Figures for memorisation or creativity."""

from __future__ import annotations

import numpy as np
import pytest

from archloop.config import NoveltyConfig
from archloop.report.diversity import Network, Seeds, of_cycles
from archloop.types import GraphSketch


def made(text: str, *labels: int) -> Network:
    code = f"{text} = 1\n" * 60
    shingles = np.array(sorted(labels), "<u8").tobytes()
    return Network(code, GraphSketch(str(labels), shingles) if labels else None)


def test_cycles_are_compared_with_seeds_and_with_what_came_before() -> None:
    seeds = Seeds([made("seed", 1, 2)], NoveltyConfig())
    first = [made("seed", 1, 2), made("a", 2, 3)]
    second = [made("b", 3, 4), made("c", 3, 4), made("d")]
    one, two, empty, whole = of_cycles([first, second, []], seeds)
    assert (one.n, one.memorised, one.traced, one.distinct_graphs) == (2, 1, 2, 2)
    assert one.distance == pytest.approx(1.0)
    assert one.new_motifs == pytest.approx(1 / 3)
    assert (two.memorised, two.traced, two.distinct_graphs) == (0, 2, 1)
    assert two.new_motifs == pytest.approx(1 / 2)
    assert (empty.n, empty.distance, empty.new_motifs) == (0, None, None)
    assert (whole.n, whole.memorised, whole.distinct_graphs) == (5, 1, 3)
    assert whole.new_motifs == pytest.approx(2 / 4)


def test_without_the_graphs_of_the_seeds_no_motif_counts_as_new() -> None:
    seeds = Seeds([made("seed")], NoveltyConfig(), traced=False)
    (one, whole) = of_cycles([[made("a", 1, 2)]], seeds)
    assert (one.traced, one.new_motifs, whole.new_motifs) == (1, None, None)


def test_equal_networks_have_no_distance() -> None:
    (one, _) = of_cycles([[made("a"), made("a")]], Seeds([], NoveltyConfig()))
    assert one.distance == 0.0
    assert one.new_motifs is None
