"""What the paper reports of a cycle and of a whole run (section 3, table 2), from the counts kept.

Rates and accuracies are fractions in 0..1. A proportion keeps its k and n; an interval that the
sample does not give is ``None``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any, TypeVar

from archloop.llm.spending import Spent
from archloop.stats import share_interval, wilson_interval
from archloop.types import CycleStats, Outcome

Interval = tuple[float, float]
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Proportion:
    """k of n, with its Wilson 95 % interval."""

    k: int
    n: int

    @property
    def rate(self) -> float | None:
        """The quotient; ``None`` with n = 0."""
        return self.k / self.n if self.n else None

    @property
    def interval(self) -> Interval | None:
        """Wilson 95 % interval; ``None`` with n = 0."""
        return wilson_interval(self.k, self.n) if self.n else None

    def to_json(self) -> dict[str, Any]:
        """``k``, ``n``, ``rate``, ``interval``."""
        return {"k": self.k, "n": self.n, "rate": self.rate, "interval": _json(self.interval)}


@dataclass(frozen=True)
class Mean:
    """The mean of rates or accuracies, with its Student-t 95 % interval, cut to 0..1."""

    n: int
    value: float | None
    interval: Interval | None
    """``None`` with fewer than two values."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """The mean of the values; ``None`` without any."""
        if not values:
            return cls(0, None, None)
        return cls(len(values), fmean(values), share_interval(values))

    def to_json(self) -> dict[str, Any]:
        """``n``, ``value``, ``interval``."""
        return {"n": self.n, "value": self.value, "interval": _json(self.interval)}


@dataclass(frozen=True)
class CycleSummary:
    """One row of the paper's table 2, and what it leaves out."""

    stats: CycleStats
    valid: Proportion
    """Valid candidates of all completions."""
    at_floor: Proportion
    """Valid candidates at or above ``selection.min_accuracy``, of the valid ones."""
    near_duplicate: Proportion
    """Near-duplicates of the valid candidates."""
    best: float | None
    mean: Mean
    median: float | None

    @classmethod
    def of(cls, stats: CycleStats) -> CycleSummary:
        """Summarise the counts of one cycle."""
        return cls(
            stats=stats,
            valid=Proportion(stats.n_valid, stats.n_gen),
            at_floor=Proportion(stats.n_at_floor, stats.n_valid),
            near_duplicate=Proportion(stats.n_near_duplicate, stats.n_valid),
            best=max(stats.accuracies, default=None),
            mean=Mean.of(stats.accuracies),
            median=median(stats.accuracies) if stats.accuracies else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The counts as they are kept, and what follows from them."""
        counts = asdict(self.stats)
        counts["accuracies"] = list(self.stats.accuracies)
        return counts | {
            "valid": self.valid.to_json(),
            "at_floor": self.at_floor.to_json(),
            "near_duplicate": self.near_duplicate.to_json(),
            "best_accuracy": self.best,
            "mean_accuracy": self.mean.to_json(),
            "median_accuracy": self.median,
        }


@dataclass(frozen=True)
class RunSummary:
    """The whole run, as the paper sums it up in section 4."""

    cycles: tuple[CycleSummary, ...]
    valid_rate: Mean
    """Mean of the cycles' valid rates, each cycle counting the same."""
    valid: Proportion
    """Over all completions."""
    at_floor: Proportion
    near_duplicate: Proportion
    accuracy: Mean
    """Over all valid candidates of all cycles."""
    best: float | None
    n_accepted: int
    n_tokens: int | None
    wall_seconds: float | None
    outcomes: dict[Outcome, int]
    """In ladder order; outcomes that never occurred are left out."""

    @classmethod
    def of(cls, stats: Sequence[CycleStats]) -> RunSummary:
        """Summarise the committed cycles of a run."""
        cycles = tuple(CycleSummary.of(s) for s in stats)
        n_valid = sum(s.n_valid for s in stats)
        accuracies = [a for s in stats for a in s.accuracies]
        outcomes: Counter[str] = Counter()
        for s in stats:
            outcomes.update(s.outcomes)
        return cls(
            cycles=cycles,
            valid_rate=Mean.of([c.valid.rate for c in cycles if c.valid.rate is not None]),
            valid=Proportion(n_valid, sum(s.n_gen for s in stats)),
            at_floor=Proportion(sum(s.n_at_floor for s in stats), n_valid),
            near_duplicate=Proportion(sum(s.n_near_duplicate for s in stats), n_valid),
            accuracy=Mean.of(accuracies),
            best=max(accuracies, default=None),
            n_accepted=sum(s.n_accepted for s in stats),
            n_tokens=_total([s.n_tokens for s in stats]),
            wall_seconds=_total([s.wall_seconds for s in stats]),
            outcomes={o: outcomes[o.value] for o in Outcome if outcomes[o.value]},
        )

    def to_json(self) -> dict[str, Any]:
        """The totals, without the cycles."""
        return {
            "mean_valid_rate": self.valid_rate.to_json(),
            "valid": self.valid.to_json(),
            "at_floor": self.at_floor.to_json(),
            "near_duplicate": self.near_duplicate.to_json(),
            "mean_accuracy": self.accuracy.to_json(),
            "best_accuracy": self.best,
            "n_accepted": self.n_accepted,
            "n_tokens": self.n_tokens,
            "wall_seconds": self.wall_seconds,
            "outcomes": {outcome.value: n for outcome, n in self.outcomes.items()},
        }


@dataclass(frozen=True)
class Spending:
    """What a run has used of its LLM's server, and what that makes for each accepted network."""

    spent: Spent
    n_accepted: int
    """Of the committed cycles."""
    priced: bool
    """Whether the configuration has prices."""

    @property
    def cost(self) -> float | None:
        """In the currency of the prices; ``None`` without prices."""
        return self.spent.cost if self.priced else None

    @property
    def cost_per_accepted(self) -> float | None:
        """``None`` without prices, or with nothing accepted."""
        return self.spent.cost / self.n_accepted if self.priced and self.n_accepted else None

    @property
    def tokens_per_accepted(self) -> float | None:
        """``None`` with nothing accepted."""
        return self.spent.tokens / self.n_accepted if self.n_accepted else None

    def to_json(self) -> dict[str, Any]:
        """The figures; ``cost`` is ``None`` without prices."""
        return self.spent.to_json() | {
            "cost": self.cost,
            "cost_per_accepted": self.cost_per_accepted,
            "tokens_per_accepted": self.tokens_per_accepted,
        }


def _total(values: Sequence[_Number | None]) -> _Number | None:
    """The sum; ``None`` if a part of it was not measured, or there is none."""
    known = [value for value in values if value is not None]
    return sum(known, start=type(known[0])()) if known and len(known) == len(values) else None


def _json(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
