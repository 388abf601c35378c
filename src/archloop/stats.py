"""Confidence intervals as in the paper (section 3): Wilson for proportions, t for means."""

from __future__ import annotations

import math
from statistics import fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def wilson_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927).

    Args:
        k: Successes, 0..n.
        n: Trials; with none, nothing is known and the interval is (0, 1).
        confidence: Coverage, inside 0..1.

    Returns:
        Low and high end as fractions in 0..1.

    Raises:
        ValueError: ``k`` is outside 0..n, or ``confidence`` outside 0..1.
    """
    _check_confidence(confidence)
    if not 0 <= k <= n:
        raise ValueError(f"k = {k}: expected 0 <= k <= n = {n}")
    if n == 0:
        return (0.0, 1.0)
    from scipy.stats import binomtest  # scipy.stats takes most of a second to load

    interval = binomtest(k, n).proportion_ci(confidence, method="wilson")
    return (float(interval.low), float(interval.high))


def t_interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student-t interval of a mean: mean +- t * s / sqrt(n) (paper, equation 3).

    The interval is not cut to the values' range; :func:`share_interval` is. One value says nothing
    about the spread: the interval is (-inf, inf). So do no values at all.

    Args:
        values: The sample, for example first-epoch accuracies as fractions.
        confidence: Coverage, inside 0..1.

    Returns:
        Low and high end, in the unit of the values.

    Raises:
        ValueError: ``confidence`` is outside 0..1, or a value is not finite.
    """
    _check_confidence(confidence)
    sample = [float(value) for value in values]
    if not all(map(math.isfinite, sample)):
        raise ValueError("values: expected finite numbers")
    n = len(sample)
    if n < 2:
        return (-math.inf, math.inf)
    from scipy.special import stdtrit  # scipy takes a third of a second to load

    mean = fmean(sample)
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * stdev(sample, mean) / math.sqrt(n)
    return (mean - half, mean + half)


def share_interval(shares: Iterable[float]) -> tuple[float, float] | None:
    """Student-t 95 % interval of a mean of rates or accuracies.

    Of few values it would go beyond what a mean of shares can be, so it is cut to 0..1.

    Args:
        shares: Fractions in 0..1.

    Returns:
        Low and high end as fractions in 0..1; ``None`` with fewer than two values.

    Raises:
        ValueError: A value is not finite.
    """
    low, high = t_interval(shares)
    return (max(0.0, low), min(1.0, high)) if math.isfinite(low) else None


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence = {confidence}: expected a number between 0 and 1")
