"""The simulation of benchmarks/novelty_scale.py, small."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from archloop.novelty import jaccard  # noqa: E402
from benchmarks import novelty_scale  # noqa: E402


def bases(n: int = 30) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [np.unique(rng.integers(0, 2**64, 600, np.uint64)) for _ in range(n)]


def test_an_edit_replaces_its_share() -> None:
    (base,) = bases(1)
    other = novelty_scale.edited(base, 0.25, np.random.default_rng(2))
    assert jaccard(base, other) == 450 / 750
    assert np.array_equal(other, np.unique(other))


def test_planted_near_duplicates_are_found(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(novelty_scale, "PLANTED", 5)
    monkeypatch.setattr(novelty_scale, "QUERIES", 10)
    result = novelty_scale.simulate(bases(), 2_000)
    assert result.planted > 100
    assert result.recall >= 0.99
    assert [s.networks for s in result.stages] == list(range(200, 2_001, 200))
    # 600 shingles of 8 bytes, 256 values of 4, 25 bands of 12.
    assert 5_500 < result.bytes_per_network < 9_000
