"""Novelty of networks, by their text (paper, A.1) and by their computation graph.

``graph`` compares traced computation graphs, in the canonical form of ``canonical`` and ``rules``.
``tokens`` turns code into a set of hashed shingles, ``index`` finds the most similar known network
and removes near-duplicates, ``judge`` keeps the networks that a run compares candidates with.
"""

from archloop.novelty.graph import (
    Graph,
    GraphError,
    graph_distance,
    graph_hash,
    graph_shingles,
    operator_motifs,
    sketch_graph,
)
from archloop.novelty.index import NoveltyIndex, deduplicate, visit
from archloop.novelty.judge import NoveltyJudge
from archloop.novelty.tokens import CodeTokenError, View, jaccard, shingles, tokens

__all__ = [
    "CodeTokenError",
    "Graph",
    "GraphError",
    "NoveltyIndex",
    "NoveltyJudge",
    "View",
    "deduplicate",
    "graph_distance",
    "graph_hash",
    "graph_shingles",
    "jaccard",
    "operator_motifs",
    "shingles",
    "sketch_graph",
    "tokens",
    "visit",
]
