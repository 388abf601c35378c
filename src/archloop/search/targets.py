"""What a prompt asks for beside the task: a structure class and a parameter budget.

``even``: classes are drawn uniformly from all that are known, budgets from those of the prompt's
steps within a factor of ten below the task's. ``best``: half of the requests are drawn so; the
other half ask, within the whole budget, for classes that did well, drawn by linear ranking (Baker,
1985) of their mean first-epoch accuracy, which counts :data:`_PRIOR` networks of the mean of all
besides its own, so that one lucky network makes no class.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from archloop.config.derived import derive_seed
from archloop.novelty.structure import PLAIN, structure_class
from archloop.search.history import History
from archloop.search.prompts import parameter_cap
from archloop.types import Candidate

_PRIOR = 5
_LOWEST_SHARE = 0.1
"""Of the task's budget: the smallest that is asked for."""


@dataclass(frozen=True)
class Target:
    """What one request asks for."""

    structure: str
    """A class, such as ``skip+gate``."""
    max_params: int


def targets(
    history: History, cycle: int, n: int, condition: Literal["even", "best"]
) -> list[Target]:
    """The targets of a cycle's ``n`` requests, decided by the seed and the history alone."""
    rng = random.Random(derive_seed(history.seed, "targets", cycle))
    valid = [c for earlier in history.before(cycle) for c in history.valid(earlier.cycle)]
    known = _known(history, valid)
    budgets, ranked = _budgets(history.max_params), _ranked(valid)
    found = []
    for index in range(n):
        even = Target(rng.choice(known), rng.choice(budgets))
        if condition == "best" and ranked and index % 2:
            (chosen,) = rng.choices(ranked, weights=range(len(ranked), 0, -1))
            even = Target(chosen, history.max_params)
        found.append(even)
    return found


def _known(history: History, valid: Iterable[Candidate]) -> list[str]:
    """The classes of the seed networks and of all valid candidates, sorted."""
    seeds = (n.graph.profile for n in history.seed_networks() if n.graph and n.graph.profile)
    measured = (*seeds, *(c.measures for c in valid))
    return sorted({name for m in measured if (name := structure_class(m))}) or [PLAIN]


def _budgets(most: int) -> list[int]:
    """The task's budget and the prompt's steps below it.

    >>> _budgets(500_000)
    [50000, 100000, 200000, 500000]
    """
    found, budget = {most}, parameter_cap(round(most * _LOWEST_SHARE))
    while budget < most:
        found.add(budget)
        budget = parameter_cap(budget + 1)
    return sorted(found)


def _ranked(valid: Sequence[Candidate]) -> list[str]:
    """The classes of valid candidates, the best first."""
    by_class: dict[str, list[float]] = defaultdict(list)
    for candidate in valid:
        found, accuracy = structure_class(candidate.measures), candidate.first_epoch_accuracy
        if found is not None and accuracy is not None:
            by_class[found].append(accuracy)
    if not by_class:
        return []
    overall = fmean(a for accuracies in by_class.values() for a in accuracies)
    shrunk = {
        name: (sum(accuracies) + _PRIOR * overall) / (len(accuracies) + _PRIOR)
        for name, accuracies in by_class.items()
    }
    return sorted(shrunk, key=lambda name: (-shrunk[name], name))


def has_structure(candidate: Candidate, asked: str) -> bool | None:
    """Whether a network has every structure that was asked for; ``None``: it was not measured."""
    found = structure_class(candidate.measures)
    if found is None:
        return None
    return asked == PLAIN or set(asked.split("+")) <= set(found.split("+"))
