"""Networks that structural edits make of seed networks: for more seeds, and for pairs of edits.

Every child is traced, and kept only where the edit did what it claims and the child is within the
limits. Which seed network and which edit come next is drawn; of the edits that have a place, the
one that was used least.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from archloop.code.edits import EDITS, Edit, edited
from archloop.code.edits.verify import broken_claim
from archloop.types import GraphSketch, Verdict

Trace = Callable[[Sequence[str]], Sequence[tuple[Verdict, GraphSketch | None]]]
"""Builds and traces sources in the sandbox, in order."""
_ROUND = 64
"""Children traced at a time."""
_CHOICE = 4
"""Edits that are drawn for one child."""
_ROUNDS_WITHOUT = 20
"""Rounds that give nothing before the search ends."""


@dataclass(frozen=True)
class Parent:
    """A network with its measures."""

    name: str
    code: str
    measures: dict[str, float]
    """With ``n_params`` and the structure profile."""


@dataclass(frozen=True)
class Child(Parent):
    """A network that one edit made of another."""

    parent: Parent
    edit: Edit


@dataclass(frozen=True)
class Limits:
    """What a child must keep."""

    max_params: int | None
    max_macs: int | None

    def fault(self, measures: dict[str, float]) -> str | None:
        """Which limit a network breaks; what was not measured breaks none."""
        for name, most in (("n_params", self.max_params), ("macs", self.max_macs)):
            if most is not None and measures.get(name, 0) > most:
                return f"over {most:,} {name}"
        return None


def children(
    parents: Sequence[Parent], n: int, rng: random.Random, trace: Trace, limits: Limits
) -> tuple[list[Child], Counter[str]]:
    """At most ``n`` verified children, and how often each reason kept another from being one.

    Args:
        parents: Networks to edit, which may be drawn again and again.
        n: How many.
        rng: Decides everything.
        trace: As above.
        limits: Of a child.
    """
    found: list[Child] = []
    faults, used = Counter[str](), Counter[str]()
    seen = {parent.code for parent in parents}
    barren = 0
    while parents and len(found) < n and barren < _ROUNDS_WITHOUT:
        proposed = list(_proposals(parents, rng, used, seen))
        before = len(found)
        for (parent, edit, code), (verdict, graph) in zip(
            proposed, trace([code for *_, code in proposed]), strict=True
        ):
            child = _child(parent, edit, code, verdict, graph)
            fault = child if isinstance(child, str) else limits.fault(child.measures)
            if fault is not None:
                faults[f"{edit.name}: {fault}"] += 1
            elif isinstance(child, Child) and len(found) < n:
                found.append(child)
                used[edit.name] += 1
        barren = 0 if len(found) > before else barren + 1
    return found, faults


def _proposals(
    parents: Sequence[Parent], rng: random.Random, used: Counter[str], seen: set[str]
) -> Iterator[tuple[Parent, Edit, str]]:
    """A round of edited sources that nobody had before."""
    for _ in range(_ROUND):
        parent = rng.choice(parents)
        for name in sorted(rng.sample([*EDITS], _CHOICE), key=lambda name: used[name]):
            code = edited(parent.code, EDITS[name], rng)
            if code is not None and code not in seen:
                seen.add(code)
                yield parent, EDITS[name], code
                break


def _child(
    parent: Parent, edit: Edit, code: str, verdict: Verdict, graph: GraphSketch | None
) -> Child | str:
    """The child, or why it is none."""
    if not verdict.outcome.is_valid:
        return verdict.outcome.value
    measures = measures_of(verdict, graph)
    if measures is None:
        return "not traced"
    if (broken := broken_claim(edit, parent.measures, measures)) is not None:
        return broken.partition(",")[0]
    return Child(f"{parent.name}-{edit.name}", code, measures, parent, edit)


def measures_of(verdict: Verdict, graph: GraphSketch | None) -> dict[str, float] | None:
    """The measures of a traced network; ``None``: its structure is not known."""
    if graph is None or graph.profile is None or verdict.n_params is None:
        return None
    return graph.profile | {"n_params": float(verdict.n_params)}
