from __future__ import annotations

import math
import subprocess
import sys
from statistics import NormalDist

import numpy as np
import pytest

from archloop.stats import share_interval, t_interval, wilson_interval


def percent(interval: tuple[float, float]) -> list[float]:
    return [round(100 * end, 1) for end in interval]


def test_wilson_gives_the_published_interval() -> None:
    # Paper, table 3: cycle 1, 22 of 50 valid.
    assert percent(wilson_interval(22, 50)) == [31.2, 57.7]


@pytest.mark.parametrize(
    ("k", "n", "expected"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_gives_newcombes_examples(k: int, n: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(k, n) == pytest.approx(expected, abs=5e-5)


def test_wilson_ends_are_where_the_score_test_just_does_not_reject() -> None:
    for k, n, confidence in [(3, 7, 0.95), (155, 208, 0.95), (49, 50, 0.99), (7, 7, 0.8)]:
        z = NormalDist().inv_cdf(0.5 + confidence / 2)
        for end in wilson_interval(k, n, confidence):
            if 0.0 < end < 1.0:
                deviation = abs(k / n - end) / math.sqrt(end * (1 - end) / n)
                assert deviation == pytest.approx(z, rel=1e-9)


def test_wilson_at_the_ends() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 5)[0] == 0.0
    assert wilson_interval(5, 5)[1] == 1.0
    low, high = wilson_interval(0, 5)
    assert wilson_interval(5, 5) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("arguments", [(5, 4), (-1, 4), (1, -1), (1, 2, 0.0), (1, 2, 95)])
def test_wilson_refuses_impossible_counts(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        wilson_interval(*arguments)


def test_t_gives_the_interval_of_the_definition() -> None:
    # t(0.975, 4) = 2.776 from a printed table.
    values = [0.2, 0.3, 0.4, 0.5, 0.6]
    half = 2.776 * math.sqrt(0.025) / math.sqrt(5)
    assert t_interval(values) == pytest.approx((0.4 - half, 0.4 + half), abs=1e-4)
    assert t_interval(np.array(values)) == t_interval(iter(values))


def test_t_agrees_with_scipy() -> None:
    from scipy.stats import sem, t

    values = np.random.default_rng(0).normal(0.42, 0.1, 1754)
    expected = t.interval(0.9, len(values) - 1, values.mean(), sem(values))
    assert t_interval(values, 0.9) == pytest.approx(expected, abs=1e-12)


def test_t_covers_the_mean_as_often_as_it_says() -> None:
    samples = np.random.default_rng(1).normal(0.5, 0.1, (2000, 5))
    hits = sum(low <= 0.5 <= high for low, high in map(t_interval, samples))
    assert 0.935 <= hits / 2000 <= 0.965


def test_t_of_too_few_values_says_nothing() -> None:
    assert t_interval([]) == (-math.inf, math.inf)
    assert t_interval([0.5]) == (-math.inf, math.inf)
    assert t_interval([0.5, 0.5]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="finite"):
        t_interval([0.5, math.nan])


def test_an_interval_of_shares_ends_where_shares_do() -> None:
    assert share_interval([0.5]) is None
    assert share_interval([0.6, 0.85]) == (0.0, 1.0)
    assert share_interval([0.5, 0.5, 0.6]) == t_interval([0.5, 0.5, 0.6])


def test_importing_stats_loads_no_scipy() -> None:
    code = "import sys, archloop.stats; sys.exit('scipy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
