"""Selection: which valid candidates of a cycle enter the corpus (paper, section 3, A.2).

Candidates are decided one after the other in index order, whatever order they were trained in, so
the choice does not depend on timing. Each goes down the end of the ladder: ``near_duplicate``
before ``below_threshold`` before ``accepted``; only accepted ones count in J_gen afterwards.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from archloop.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from archloop.config import SelectionConfig
    from archloop.types import Candidate, GraphSketch, NoveltyScores


class ValidCandidate(NamedTuple):
    """What selection has to know of a candidate that was trained to the end of the epoch."""

    id: str
    code: str
    first_epoch_accuracy: float
    graph: GraphSketch | None = None
    train_seconds: float | None = None

    @classmethod
    def of(cls, row: Candidate) -> Self:
        """From the row of a valid candidate."""
        accuracy = row.first_epoch_accuracy or 0.0
        return cls(row.id, row.code or "", accuracy, row.graph, row.train_seconds)


class Decision(NamedTuple):
    """Where a valid candidate ended, and why."""

    id: str
    outcome: Outcome
    """``near_duplicate``, ``below_threshold`` or ``accepted``."""
    scores: NoveltyScores
    rejection_count: int
    """Near-duplicates rejected between the last accepted candidate and this one."""


class Judge(Protocol):
    """Scores candidates and remembers the accepted (:class:`archloop.novelty.NoveltyJudge`)."""

    def judge(self, id: str, code: str, graph: GraphSketch | None = None) -> NoveltyScores:
        """Score a candidate against the corpus and against what this cycle accepted."""
        ...

    def accept(self, id: str, code: str, graph: GraphSketch | None = None) -> None:
        """Record that a candidate was accepted."""
        ...


def threshold_of(config: SelectionConfig, accuracies: Sequence[Sequence[float]]) -> float:
    """The first-epoch accuracy that the candidates of a cycle must reach.

    Args:
        config: ``min_accuracy`` is the floor; ``percentile`` and ``window`` may raise it.
        accuracies: Of the valid candidates, one sequence a cycle, oldest first; the last one is of
            the cycle that is selected from.

    Returns:
        The floor, or the percentile (linear between ranks) of the last ``window`` cycles above it.
    """
    recent = sorted(a for cycle in accuracies[-config.window :] for a in cycle)
    if config.percentile is None or not recent:
        return config.min_accuracy
    rank = config.percentile / 100 * (len(recent) - 1)
    low = int(rank)
    high = min(low + 1, len(recent) - 1)
    value = recent[low] + (rank - low) * (recent[high] - recent[low])
    return max(config.min_accuracy, value)


def select(
    candidates: Iterable[ValidCandidate],
    judge: Judge,
    threshold: float,
    *,
    max_train_seconds: float | None = None,
    reject_near_duplicates: bool = True,
    rejection_count: int = 0,
) -> list[Decision]:
    """Decide over the valid candidates of one cycle.

    Args:
        candidates: In index order.
        judge: After ``start_cycle``; the accepted candidates are recorded in it.
        threshold: The first-epoch accuracy to reach (``>=``), see :func:`threshold_of`.
        max_train_seconds: ``selection.max_train_seconds``; who trained for longer is below the
            threshold too.
        reject_near_duplicates: ``novelty.enabled``; if false, near-duplicates are only scored.
        rejection_count: Near-duplicates rejected in earlier cycles since the last accepted one.

    Returns:
        One decision a candidate, in the order given.
    """
    decisions: list[Decision] = []
    limit = math.inf if max_train_seconds is None else max_train_seconds
    for id, code, accuracy, graph, seconds in candidates:
        scores = judge.judge(id, code, graph)
        if reject_near_duplicates and scores.is_near_duplicate:
            outcome = Outcome.NEAR_DUPLICATE
        elif accuracy < threshold or (seconds or 0.0) > limit:
            outcome = Outcome.BELOW_THRESHOLD
        else:
            outcome = Outcome.ACCEPTED
            judge.accept(id, code, graph)
        decisions.append(Decision(id, outcome, scores, rejection_count))
        rejection_count = next_count(rejection_count, outcome)
    return decisions


def next_count(count: int, outcome: Outcome) -> int:
    """``rejection_count`` after one more decision."""
    if outcome is Outcome.ACCEPTED:
        return 0
    return count + (outcome is Outcome.NEAR_DUPLICATE)
