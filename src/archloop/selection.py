"""Selection: which valid candidates of a cycle enter the corpus (paper, section 3, A.2).

Candidates are decided one after the other in index order, whatever order they were trained in, so
the choice does not depend on timing. Each goes down the end of the ladder: ``near_duplicate``
before ``below_threshold`` before ``accepted``; only accepted ones count in J_gen afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from archloop.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from archloop.config import SelectionConfig
    from archloop.types import GraphSketch, NoveltyScores


class ValidCandidate(NamedTuple):
    """What selection has to know of a candidate that was trained to the end of the epoch."""

    id: str
    code: str
    first_epoch_accuracy: float
    graph: GraphSketch | None = None


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


def select(
    candidates: Iterable[ValidCandidate],
    judge: Judge,
    config: SelectionConfig,
    *,
    reject_near_duplicates: bool = True,
    rejection_count: int = 0,
) -> list[Decision]:
    """Decide over the valid candidates of one cycle.

    Args:
        candidates: In index order.
        judge: After ``start_cycle``; the accepted candidates are recorded in it.
        config: The accuracy threshold, which an accuracy must reach (``>=``).
        reject_near_duplicates: ``novelty.enabled``; if false, near-duplicates are only scored.
        rejection_count: Near-duplicates rejected in earlier cycles since the last accepted one.

    Returns:
        One decision a candidate, in the order given.
    """
    decisions: list[Decision] = []
    for id, code, accuracy, graph in candidates:
        scores = judge.judge(id, code, graph)
        if reject_near_duplicates and scores.is_near_duplicate:
            outcome = Outcome.NEAR_DUPLICATE
        elif accuracy < config.min_accuracy:
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
