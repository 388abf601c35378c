"""Splits a seed corpus into train, dev and test; near-duplicates stay in the same split.

Networks whose similarity is above the retrieval threshold in the lexical view, or above the
near-duplicate threshold with names and numbers folded, are connected; connected networks stay
together. The largest groups are placed first, each in the split that lacks the most.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping

from archloop.config import NoveltyConfig
from archloop.novelty import NoveltyIndex

SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}
"""nn-dup's (``settings.py``)."""


def split(codes: Mapping[str, str], novelty: NoveltyConfig) -> dict[str, str]:
    """The split of each network, by name; the order of the mapping does not matter."""
    placed: Counter[str] = Counter()
    found: dict[str, str] = {}
    for group in sorted(components(codes, novelty), key=lambda g: (-len(g), _rank(g[0]))):
        target = max(SHARES, key=lambda name: SHARES[name] * len(codes) - placed[name])
        placed[target] += len(group)
        found |= dict.fromkeys(group, target)
    return found


def components(codes: Mapping[str, str], novelty: NoveltyConfig) -> list[list[str]]:
    """Names of connected networks, each group sorted."""
    parent = {name: name for name in codes}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    lexical = NoveltyIndex(novelty)
    folded = NoveltyIndex(novelty, "normalized")
    for index, above in (
        (lexical, novelty.lsh_threshold),
        (folded, novelty.near_duplicate_threshold),
    ):
        for name in sorted(codes):
            sketch = index.sketch(codes[name])
            for other in index.neighbours(sketch, above):
                parent[root(name)] = root(other)
            index.add(name, sketch)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(codes):
        groups[root(name)].append(name)
    return list(groups.values())


def _rank(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
