"""Seed networks from an earlier run: its accepted networks with their accuracies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from archloop.corpus.seeds.source import SeedNetwork
from archloop.store.run_dir import Run


class RunSource:
    """The accepted candidates of a run directory.

    Raises:
        UsageError: The directory is no run.
    """

    def __init__(self, path: Path) -> None:
        with Run.open(path) as run:
            self._accepted = [c for c in run.store.accepted() if c.code is not None]
        self._name = path.resolve().name

    @property
    def digest(self) -> str:
        """SHA-256 over ids and codes."""
        sha = hashlib.sha256()
        for candidate in self._accepted:
            sha.update(f"{candidate.id}\0{candidate.code_sha256}\0".encode())
        return sha.hexdigest()

    def networks(self) -> Iterator[SeedNetwork]:
        """Every accepted candidate, in (cycle, index) order; its family is the run."""
        for candidate in self._accepted:
            assert candidate.code is not None
            name, accuracy = f"{self._name}-{candidate.id}", candidate.first_epoch_accuracy
            yield SeedNetwork(name, self._name, candidate.code, accuracy, flags=candidate.flags)
