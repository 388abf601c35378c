"""Quality and diversity together: the best of each niche, as in MAP-Elites (Mouret, Clune, 2015).

A niche is a structure class in a cell of cost (:func:`archloop.novelty.structure.niche`). Accuracy
is noisy: of many candidates the best is partly the luckiest. Where would-be champions were trained
again with other seeds, a candidate's *score* is the lower confidence bound of its mean accuracy.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import fmean

from archloop.novelty.structure import niche
from archloop.types import Candidate

AGAIN = "accuracy_again_"
"""Measures of a candidate that was trained again, by the number of the training, from 1."""
_CONFIDENCE = 0.95
"""One-sided."""


@dataclass(frozen=True)
class Spread:
    """The noise of training, from all candidates that were trained more than once."""

    deviation: float
    """Pooled standard deviation between seeds of one network: the root of the summed squared
    differences from each network's mean, over the degrees of freedom."""
    freedom: int
    """Trainings less networks."""


@dataclass(frozen=True)
class Repeat:
    """One more training of a candidate."""

    candidate: Candidate
    number: int
    """From 1."""
    seed: int

    @property
    def measure(self) -> str:
        """Name of the measure that its accuracy is kept as."""
        return f"{AGAIN}{self.number}"


def trainings(candidate: Candidate) -> tuple[float, ...]:
    """Accuracies of a candidate, the first one and those with other seeds."""
    first = candidate.first_epoch_accuracy
    found = [] if first is None else [first]
    for number in count(1):
        again = candidate.measures.get(f"{AGAIN}{number}")
        if again is None:
            return tuple(found)
        found.append(again)
    raise AssertionError("count() has no end")


def spread(candidates: Iterable[Candidate]) -> Spread | None:
    """The pooled spread; ``None`` where no candidate was trained more than once."""
    squares, freedom = 0.0, 0
    for candidate in candidates:
        values = trainings(candidate)
        if len(values) > 1:
            mean = fmean(values)
            squares += sum((v - mean) ** 2 for v in values)
            freedom += len(values) - 1
    return Spread(math.sqrt(squares / freedom), freedom) if freedom else None


def score(candidate: Candidate, noise: Spread | None) -> float | None:
    """What a candidate is judged by.

    Args:
        candidate: A valid one.
        noise: The pooled spread of the run.

    Returns:
        ``mean - t * s / sqrt(n)`` of a candidate that was trained ``n`` > 1 times, with the pooled
        deviation ``s`` and the one-sided 95 % quantile ``t`` of Student's distribution; the
        first-epoch accuracy of others; ``None``: it was not measured.
    """
    values = trainings(candidate)
    if noise is None or len(values) < 2:
        return candidate.first_epoch_accuracy
    from scipy.special import stdtrit  # scipy takes a third of a second to load

    half = float(stdtrit(noise.freedom, _CONFIDENCE)) * noise.deviation / math.sqrt(len(values))
    return fmean(values) - half


@dataclass(frozen=True)
class Archive:
    """Valid candidates by niche, with their scores."""

    by_niche: dict[str, list[tuple[float, Candidate]]]
    """The best first; of equals the earlier one."""

    @classmethod
    def of(cls, candidates: Sequence[Candidate], noise: Spread | None) -> Archive:
        """The archive of candidates in (cycle, index) order."""
        found: dict[str, list[tuple[float, Candidate]]] = defaultdict(list)
        for candidate in candidates:
            if (value := score(candidate, noise)) is not None:
                found[niche(candidate.measures)].append((value, candidate))
        return cls({n: sorted(rows, key=lambda row: -row[0]) for n, rows in found.items()})

    def best(self, name: str) -> float | None:
        """Score of the champion of a niche; ``None`` where it is empty."""
        rows = self.by_niche.get(name)
        return rows[0][0] if rows else None


def would_be_champions(
    candidates: Iterable[Candidate], champions: Archive, at_least: float
) -> list[Candidate]:
    """Candidates that are better than the champion of their niche; empty niches have none.

    Args:
        candidates: Of a cycle, in index order.
        champions: What earlier cycles accepted.
        at_least: Accuracy below which nothing is accepted.
    """
    found = []
    for candidate in candidates:
        accuracy, best = candidate.first_epoch_accuracy, champions.best(niche(candidate.measures))
        if accuracy is not None and accuracy >= at_least and best is not None and accuracy > best:
            found.append(candidate)
    return found
