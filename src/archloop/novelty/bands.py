"""Banded locality-sensitive hashing as a few sorted arrays: which known signatures share a band.

A table of Python lists takes some 5 kB a network and slows down as it outgrows the caches; here a
network takes 12 bytes a band. New networks wait in a small dictionary and are merged, a block at a
time, into sorted blocks of growing size, so one more network costs the same whatever is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WAITING = 1024
"""Networks in the dictionary before they become a sorted block."""
_GROWTH = 4
"""A block at least this many times the next one is left alone."""
_SEED = 42
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Bands:
    """Positions of signatures by the content of their bands.

    Args:
        bands: Bands of a signature.
        rows: Hash values of a band.
    """

    def __init__(self, bands: int, rows: int) -> None:
        self._bands, self._rows = bands, rows
        # The raw PCG64 stream is the same in every numpy version.
        raw = np.random.PCG64(_SEED).random_raw(rows + bands)
        self._factors, self._numbers = raw[:rows] | np.uint64(1), raw[rows:]
        self._blocks: list[tuple[NDArray[np.uint64], NDArray[np.uint32]]] = []
        self._recent: dict[int, list[int]] = {}
        self._keys: list[NDArray[np.uint64]] = []
        self._count = 0

    @property
    def nbytes(self) -> int:
        """Memory of the sorted blocks."""
        return sum(keys.nbytes + positions.nbytes for keys, positions in self._blocks)

    def keys(self, signature: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """(bands,) a hash of each band and its number."""
        table = signature[: self._bands * self._rows].reshape(self._bands, self._rows)
        keys: NDArray[np.uint64] = (table * self._factors).sum(axis=1)
        keys += self._numbers
        keys ^= keys >> np.uint64(32)
        keys *= _MULTIPLIER
        return keys

    def add(self, keys: NDArray[np.uint64]) -> None:
        """Append the next position."""
        for key in keys.tolist():
            self._recent.setdefault(key, []).append(self._count)
        self._keys.append(keys)
        self._count += 1
        if len(self._keys) == _WAITING:
            self._settle()

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
        """Positions that share a band, ascending, and how many bands they share."""
        waiting: list[int] = []
        for key in keys.tolist():
            waiting += self._recent.get(key, ())
        parts = [np.array(waiting, np.uint32)]
        for sorted_keys, positions in self._blocks:
            starts = np.searchsorted(sorted_keys, keys, "left").tolist()
            ends = np.searchsorted(sorted_keys, keys, "right").tolist()
            parts += [positions[a:b] for a, b in zip(starts, ends, strict=True) if a < b]
        found = np.sort(np.concatenate(parts))
        if not found.size:
            return found, np.empty(0, np.intp)
        ends = np.flatnonzero(np.concatenate((found[1:] != found[:-1], [True])))
        shared = ends.copy()
        shared[1:] -= ends[:-1]
        shared[0] += 1
        return found[ends], shared

    def _settle(self) -> None:
        positions = np.arange(self._count - len(self._keys), self._count, dtype=np.uint32)
        block = (np.concatenate(self._keys), np.repeat(positions, self._bands))
        self._keys, self._recent = [], {}
        while self._blocks and self._blocks[-1][0].size < _GROWTH * block[0].size:
            older = self._blocks.pop()
            block = (np.concatenate((older[0], block[0])), np.concatenate((older[1], block[1])))
        # Stable: the runs that are sorted already are merged.
        order = np.argsort(block[0], kind="stable")
        self._blocks.append((block[0][order], block[1][order]))
