"""Seed networks that are made: designs of building blocks (:mod:`archloop.search.designs`)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

from archloop.corpus.seeds.source import SeedNetwork
from archloop.search.designs import VERSION, design


class DesignSource:
    """``count`` networks, each decided by its number and the seed alone."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the networks."""
        return hashlib.sha256(f"designs {VERSION} {self._count} {self._seed}".encode()).hexdigest()

    def networks(self) -> Iterator[SeedNetwork]:
        """All networks; the family says which edits were applied."""
        for number in range(self._count):
            rng = random.Random(f"{self._seed}/{number}")
            code, applied = design(rng)
            family = "+".join(applied) or "plain"
            yield SeedNetwork(f"design-{number:05d}", family, code, None)
