"""Selection: which valid candidates of a cycle are accepted (paper, section 3, A.2).

Candidates are decided one after the other in index order, whatever order they were trained in, so
the choice does not depend on timing. Each goes down the end of the ladder: ``near_duplicate``
before ``below_threshold`` before ``quarantined`` before ``accepted``; only accepted ones count in
J_gen afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from archloop.code.hygiene import as_trained, suspect_text
from archloop.novelty.structure import niche
from archloop.search.archive import Archive, Spread, score, spread
from archloop.types import Decision, Outcome, flag_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from archloop.config import NoveltyConfig, SelectionConfig
    from archloop.search.history import History
    from archloop.types import Candidate, GraphSketch, NoveltyScores


class Judge(Protocol):
    """Scores candidates and remembers the accepted (:class:`archloop.novelty.NoveltyJudge`)."""

    def judge(self, id: str, code: str, graph: GraphSketch | None = None) -> NoveltyScores:
        """Score a candidate against the corpus and against what this cycle accepted."""
        ...

    def accept(self, id: str, code: str, graph: GraphSketch | None = None) -> None:
        """Record that a candidate was accepted."""
        ...


@dataclass(frozen=True)
class CycleDecisions:
    """What was decided over one cycle."""

    decisions: tuple[Decision, ...]
    """One a valid candidate, in index order."""
    threshold: float
    """The first-epoch accuracy that a candidate had to reach; of niches the lowest."""
    decided: dict[str, Any] = field(default_factory=dict)
    """What else was decided, as JSON values, for :attr:`archloop.types.CycleStats.decided`."""


def select(
    candidates: Iterable[Candidate],
    judge: Judge,
    *,
    limits: Callable[[Candidate], tuple[str, ...]],
    quarantine: Callable[[Candidate], tuple[str, ...]] = lambda _: (),
    reject_near_duplicates: bool = True,
    rejection_count: int = 0,
) -> Iterator[Decision]:
    """Decide over candidates one after the other; the one loop that does.

    Args:
        candidates: With code, in index order.
        judge: After ``start_cycle``; the accepted candidates are recorded in it.
        limits: The configuration keys whose limits a candidate breaks; none: it may be accepted.
        quarantine: Why a candidate within the limits must not be trained on; nothing: it may.
        reject_near_duplicates: ``novelty.enabled``; if false, near-duplicates are only scored.
        rejection_count: Near-duplicates rejected before since the last accepted candidate.

    Yields:
        One decision a candidate, in the order given.

    Raises:
        CodeTokenError: The code of a candidate is not a sequence of Python tokens.
        ValueError: A candidate has no code.
    """
    for candidate in candidates:
        id, code, graph = candidate.id, candidate.code, candidate.graph
        if code is None:
            raise ValueError(f"{id}: a candidate without code cannot be selected")
        scores = judge.judge(id, code, graph)
        broken = limits(candidate)
        if reject_near_duplicates and scores.is_near_duplicate:
            outcome, reasons = Outcome.NEAR_DUPLICATE, scores.rejected_by
        elif broken:
            outcome, reasons = Outcome.BELOW_THRESHOLD, broken
        elif held := quarantine(candidate):
            outcome, reasons = Outcome.QUARANTINED, held
        else:
            outcome, reasons = Outcome.ACCEPTED, ()
            judge.accept(id, code, graph)
        yield Decision(id, outcome, scores, rejection_count, reasons)
        rejection_count = next_count(rejection_count, outcome)


def next_count(count: int, outcome: Outcome) -> int:
    """``rejection_count`` after one more decision."""
    if outcome is Outcome.ACCEPTED:
        return 0
    return count + (outcome is Outcome.NEAR_DUPLICATE)


def decide_cycle(
    history: History,
    cycle: int,
    *,
    novelty: NoveltyConfig,
    selection: SelectionConfig,
    niche_size: int | None = None,
) -> CycleDecisions:
    """Decide over the valid candidates of a cycle: novel, accurate, not too costly, unsuspicious.

    Args:
        history: Earlier cycles as they were decided, and the candidates of this one.
        cycle: Its number, from 1.
        novelty: What a near-duplicate is.
        selection: The accuracy to reach, and the limits.
        niche_size: Select by niche: so many of each are accepted in a cycle, the best ones, each
            judged against its own niche; ``None``: one threshold for all (paper).
    """
    from archloop.novelty import NoveltyJudge

    judge = NoveltyJudge(novelty)
    for known in history.seed_networks():
        judge.add_known(known.id, known.code, known.graph)
    for earlier in history.accepted_before(cycle):
        judge.add_known(earlier.id, earlier.code or "", earlier.graph)
    judge.start_cycle()
    valid = history.valid(cycle)
    if niche_size is None:
        accuracies = [stats.accuracies for stats in history.before(cycle)]
        measured = [a for c in valid if (a := c.first_epoch_accuracy) is not None]
        rule: _Rule = _OneThreshold(selection, threshold_of(selection, [*accuracies, measured]))
    else:
        rule = _Niches(history, cycle, selection, niche_size)
    decisions = select(
        valid,
        judge,
        limits=rule.broken,
        quarantine=lambda candidate: objections(candidate, selection),
        reject_near_duplicates=novelty.enabled,
        rejection_count=history.rejections_before(cycle),
    )
    return CycleDecisions(tuple(decisions), rule.threshold, rule.decided)


class _Rule(Protocol):
    """How accurate a candidate must be."""

    @property
    def threshold(self) -> float: ...

    @property
    def decided(self) -> dict[str, Any]: ...

    def broken(self, candidate: Candidate) -> tuple[str, ...]:
        """The configuration keys whose limits a candidate breaks."""
        ...


@dataclass(frozen=True)
class _OneThreshold:
    """The same for all (paper)."""

    selection: SelectionConfig
    threshold: float

    @property
    def decided(self) -> dict[str, Any]:
        return {}

    def broken(self, candidate: Candidate) -> tuple[str, ...]:
        return broken_limits(candidate, self.selection, self.threshold)


class _Niches:
    """Each niche has a threshold of its own, and room for a few."""

    def __init__(self, history: History, cycle: int, selection: SelectionConfig, size: int) -> None:
        self._selection, self._size = selection, size
        earlier = [history.valid(stats.cycle) for stats in history.before(cycle)]
        valid = history.valid(cycle)
        self._noise: Spread | None = spread([c for cycle in (*earlier, valid) for c in cycle])
        recent = [c for cycle in (*earlier, valid)[-selection.window :] for c in cycle]
        # A limit of cost is no matter of the niche: what breaks one takes nobody's place.
        affordable = [c for c in valid if not broken_limits(_with(c, 1.0), selection, 0.0)]
        self._archive = Archive.of(affordable, self._noise)
        self._thresholds = {
            name: threshold_of(selection, [[value for value, _ in rows]])
            for name, rows in Archive.of(recent, self._noise).by_niche.items()
        }

    @property
    def threshold(self) -> float:
        """The lowest of the niches'."""
        return min(self._thresholds.values(), default=self._selection.min_accuracy)

    @property
    def decided(self) -> dict[str, Any]:
        """The threshold of each niche."""
        return {NICHE_THRESHOLDS: self._thresholds}

    def broken(self, candidate: Candidate) -> tuple[str, ...]:
        """As :func:`broken_limits`; ``search.niche_size`` where others of the niche are better."""
        name = niche(candidate.measures)
        threshold = self._thresholds.get(name, self._selection.min_accuracy)
        judged = _with(candidate, score(candidate, self._noise))
        broken = broken_limits(judged, self._selection, threshold)
        best = [c.id for _, c in self._archive.by_niche.get(name, [])[: self._size]]
        if not broken and candidate.id not in best:
            return ("search.niche_size",)
        return broken


def _with(candidate: Candidate, accuracy: float | None) -> Candidate:
    return replace(candidate, first_epoch_accuracy=accuracy)


NICHE_THRESHOLDS = "niche_thresholds"
"""Key of :attr:`archloop.types.CycleStats.decided`: the threshold of each niche, by its name."""


def broken_limits(
    candidate: Candidate, selection: SelectionConfig, threshold: float
) -> tuple[str, ...]:
    """The keys whose limits a valid candidate breaks.

    A candidate without an accuracy cannot reach the threshold; limits of a cost that was not
    measured are not broken.
    """
    accuracy, seconds = candidate.first_epoch_accuracy, candidate.train_seconds
    macs = candidate.measures.get("macs")
    key = "min_accuracy" if threshold <= selection.min_accuracy else "percentile"
    broken = {
        f"selection.{key}": accuracy is None or accuracy < threshold,
        "selection.max_macs": _above(macs, selection.max_macs),
        "selection.max_train_seconds": _above(seconds, selection.max_train_seconds),
    }
    return tuple(key for key, is_broken in broken.items() if is_broken)


def objections(candidate: Candidate, selection: SelectionConfig) -> tuple[str, ...]:
    """Why a candidate must not be trained on: ``flag:NAME``, ``text:WHAT``."""
    allowed = selection.allow_flags
    names = map(flag_name, candidate.flags)
    found = [f"flag:{name}" for name in names if name not in allowed]
    if "suspect_text" not in allowed and (what := suspect_text(as_trained(candidate.code or ""))):
        found.append(f"text:{what}")
    return tuple(found)


def _above(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit


def threshold_of(config: SelectionConfig, accuracies: Sequence[Sequence[float]]) -> float:
    """The first-epoch accuracy that the candidates of a cycle must reach (``>=``).

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
