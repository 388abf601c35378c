"""Seed sources made of a list, for tests."""

from __future__ import annotations

from collections.abc import Iterator

from archloop.corpus.seeds.source import SeedNetwork


class Listed:
    """A source made of a list."""

    digest = "0"

    def __init__(self, networks: list[SeedNetwork]) -> None:
        self._networks = networks

    def networks(self) -> Iterator[SeedNetwork]:
        yield from self._networks
