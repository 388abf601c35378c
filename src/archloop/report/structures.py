"""What networks are built of, per cycle: classes, motifs, coverage, and what prompts asked for.

The effective number of classes is the exponential of the Shannon entropy of their shares (Hill's
number of order 1): networks spread evenly over that many classes would be as diverse. nn-gpt's
reinforcement learning (``ab/gpt/act/rl/RL.py``) prints the same entropy, of its families and in
bits; two to its power is this number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from archloop.novelty.structure import PLAIN, UNTRACED, niche, structure_class
from archloop.search.targets import has_structure
from archloop.types import Candidate, GraphSketch, Outcome


@dataclass(frozen=True)
class Asked:
    """How often valid networks have what their prompts asked for."""

    n: int
    """Valid networks with a known structure whose prompt asked for a class."""
    exact: int
    """Of exactly that class."""
    at_least: int
    """With every structure that was asked for."""
    within_budget: int
    """With at most as many parameters as were asked for."""


@dataclass(frozen=True)
class Cell:
    """The networks of one niche: a structure class in a cell of MACs."""

    valid: int
    accepted: int
    best: float | None
    """Highest first-epoch accuracy of the accepted ones."""


@dataclass(frozen=True)
class Structures:
    """Of one cycle's valid networks, or of a whole run's."""

    valid: Counter[str]
    """Networks of each class, those of unknown structure left out."""
    accepted: Counter[str]
    """The same of the accepted ones."""
    grid: dict[tuple[str, str], Cell]
    """The niches with a valid network, by class and cell of MACs."""
    niches: int
    """Niches with an accepted network, in this cycle and before."""
    new_motifs: dict[str, int] | None
    """Operator motifs that no seed network has and that accepted networks have here first, each
    with the accepted networks that have it; ``None``: the seeds' are not known."""
    asked: Asked | None
    """``None``: no prompt asked for a class."""

    @property
    def structured(self) -> int:
        """Accepted networks that are not plain."""
        return sum(n for name, n in self.accepted.items() if name != PLAIN)


def effective_number(counts: Mapping[str, int]) -> float | None:
    """The exponential of the entropy of shares; ``None`` where nothing was counted.

    >>> effective_number({"plain": 3, "skip": 3})
    2.0
    """
    total = sum(counts.values())
    if not total:
        return None
    shares = [n / total for n in counts.values() if n]
    return round(math.exp(-sum(p * math.log(p) for p in shares)), 12)


def in_words(networks: Sequence[Mapping[str, float]]) -> str | None:
    """Classes and niches of networks on one line; ``None`` where no structure is known.

    Args:
        networks: The measures of each.
    """
    classes = Counter(found for m in networks if (found := structure_class(m)) is not None)
    if not classes:
        return None
    niches = {niche(measures) for measures in networks} - {UNTRACED}
    shares = ", ".join(f"{name} {n}" for name, n in classes.most_common())
    number = effective_number(classes)
    return f"{shares}; effective number of classes {number:.1f}; niches {len(niches)}"


def of_cycles(
    cycles: Sequence[Sequence[Candidate]],
    seeds: Sequence[GraphSketch | None] | None,
    asked: Mapping[str, tuple[str, int | None]],
) -> list[Structures]:
    """The structures of each cycle's valid candidates, and last of all of them together.

    Args:
        cycles: The valid candidates of each cycle.
        seeds: Graphs of the seed networks; ``None``: they were not traced.
        asked: Class and budget that the prompt of a candidate asked for, by its id.
    """
    motifs = _motifs(seeds)
    found: list[Structures] = []
    seen, taken = set(motifs or ()), set[str]()
    for candidates in cycles:
        found.append(_structures(candidates, None if motifs is None else seen, taken, asked))
        for candidate in _accepted(candidates):
            seen |= _of(candidate.graph)
            taken.add(niche(candidate.measures))
    everything = [candidate for cycle in cycles for candidate in cycle]
    return [*found, _structures(everything, motifs, set(), asked)]


def _structures(
    candidates: Sequence[Candidate],
    known: set[str] | None,
    taken: set[str],
    asked: Mapping[str, tuple[str, int | None]],
) -> Structures:
    accepted = _accepted(candidates)
    motifs = Counter(motif for c in accepted for motif in _of(c.graph))
    niches = taken | {niche(c.measures) for c in accepted}
    return Structures(
        valid=_classes(candidates),
        accepted=_classes(accepted),
        grid=_grid(candidates),
        niches=len(niches - {UNTRACED}),
        new_motifs=None if known is None else {m: motifs[m] for m in sorted(motifs.keys() - known)},
        asked=_asked(candidates, asked),
    )


def _accepted(candidates: Iterable[Candidate]) -> list[Candidate]:
    return [c for c in candidates if c.outcome is Outcome.ACCEPTED]


def _grid(candidates: Iterable[Candidate]) -> dict[tuple[str, str], Cell]:
    found: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        name, _, cell = niche(candidate.measures).partition(" @ ")
        if name != UNTRACED:
            found.setdefault((name, cell), []).append(candidate)
    return {place: _cell(networks) for place, networks in found.items()}


def _cell(candidates: Sequence[Candidate]) -> Cell:
    accepted = _accepted(candidates)
    scores = [c.first_epoch_accuracy for c in accepted if c.first_epoch_accuracy is not None]
    return Cell(len(candidates), len(accepted), max(scores, default=None))


def _classes(candidates: Iterable[Candidate]) -> Counter[str]:
    return Counter(found for c in candidates if (found := structure_class(c.measures)) is not None)


def _asked(
    candidates: Iterable[Candidate], asked: Mapping[str, tuple[str, int | None]]
) -> Asked | None:
    if not asked:
        return None
    rows = [
        (c, *asked[c.id], found)
        for c in candidates
        if c.id in asked and (found := structure_class(c.measures)) is not None
    ]
    return Asked(
        n=len(rows),
        exact=sum(wanted == found for _, wanted, _, found in rows),
        at_least=sum(bool(has_structure(c, wanted)) for c, wanted, _, _ in rows),
        within_budget=sum(
            most is None or (c.n_params is not None and c.n_params <= most)
            for c, _, most, _ in rows
        ),
    )


def _motifs(graphs: Sequence[GraphSketch | None] | None) -> set[str] | None:
    if graphs is None:
        return None
    return set().union(*map(_of, graphs))


def _of(graph: GraphSketch | None) -> set[str]:
    return set() if graph is None else set(graph.motifs or ())
