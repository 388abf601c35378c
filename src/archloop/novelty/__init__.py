"""Text novelty of networks: token shingles, MinHash retrieval, exact Jaccard (paper, A.1).

``tokens`` turns code into a set of hashed shingles, ``index`` finds the most similar known network
and removes near-duplicates, ``judge`` keeps what a run has to compare a candidate with.
"""

from archloop.novelty.index import NoveltyIndex, deduplicate, visit
from archloop.novelty.judge import NoveltyJudge
from archloop.novelty.tokens import CodeTokenError, View, jaccard, shingles, tokens

__all__ = [
    "CodeTokenError",
    "NoveltyIndex",
    "NoveltyJudge",
    "View",
    "deduplicate",
    "jaccard",
    "shingles",
    "tokens",
    "visit",
]
