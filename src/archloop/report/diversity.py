"""Memorisation or creativity: how different networks are, from each other and from the seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import numpy as np

from archloop.config import NoveltyConfig
from archloop.novelty import NoveltyIndex, jaccard, shingles
from archloop.types import GraphSketch

MEMORISED = 0.80
"""Lexical Jaccard similarity to a seed from which a network counts as memorised."""
_RETRIEVAL = 0.60
"""So far below it that the index misses none."""


@dataclass(frozen=True)
class Network:
    """What is looked at."""

    code: str
    graph: GraphSketch | None


@dataclass(frozen=True)
class Diversity:
    """Of one cycle's accepted networks, or of a whole run's."""

    n: int
    distance: float | None
    """Mean of 1 - J over all pairs (lexical shingles); ``None`` with fewer than two."""
    memorised: int
    """Within :data:`MEMORISED` of a seed."""
    traced: int
    """Networks whose graph is known."""
    distinct_graphs: int
    new_motifs: float | None
    """Share of their graph neighbourhoods (a layer and what is around it) that neither a seed nor
    an earlier accepted network has; ``None`` where no graph is known, or the seeds' are not."""


class Seeds:
    """The seeds, ready to be compared with.

    Args:
        seeds: Their code and graphs.
        config: Parameters of their similarity.
        traced: Whether all were; a graph may be ``None`` all the same.
    """

    def __init__(
        self, seeds: Iterable[Network], config: NoveltyConfig, *, traced: bool = True
    ) -> None:
        self.traced = traced
        self.shingle_size = config.shingle_size
        self._index = NoveltyIndex(config.model_copy(update={"lsh_threshold": _RETRIEVAL}))
        self.motifs: set[int] = set()
        for number, seed in enumerate(seeds):
            self._index.add(str(number), seed.code)
            self.motifs |= _motifs(seed.graph)

    def are_near(self, network: Network) -> bool:
        """Whether a network is memorised."""
        return self._index.query(network.code)[0] >= MEMORISED


def of_cycles(cycles: Sequence[Sequence[Network]], seeds: Seeds) -> list[Diversity]:
    """The diversity of each cycle's networks, and last of all of them together."""
    found, known = [], set(seeds.motifs)
    for networks in cycles:
        found.append(_diversity(networks, seeds, known))
        for network in networks:
            known |= _motifs(network.graph)
    return [*found, _diversity([n for c in cycles for n in c], seeds, set(seeds.motifs))]


def _diversity(networks: Sequence[Network], seeds: Seeds, known: set[int]) -> Diversity:
    sets = [shingles(n.code, seeds.shingle_size) for n in networks]
    distances = [1.0 - jaccard(a, b) for a, b in combinations(sets, 2)]
    graphs = [n.graph for n in networks if n.graph is not None]
    motifs = set().union(*map(_motifs, graphs))
    return Diversity(
        n=len(networks),
        distance=fmean(distances) if distances else None,
        memorised=sum(map(seeds.are_near, networks)),
        traced=len(graphs),
        distinct_graphs=len({g.hash for g in graphs}),
        new_motifs=len(motifs - known) / len(motifs) if motifs and seeds.traced else None,
    )


def _motifs(graph: GraphSketch | None) -> set[int]:
    return set() if graph is None else set(np.frombuffer(graph.shingles, "<u8").tolist())
