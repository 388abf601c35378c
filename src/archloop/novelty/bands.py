"""Banded locality-sensitive hashing: finds known signatures that share a band, in sorted arrays.

A table of Python lists takes some 5 kB a network and slows down as it outgrows the caches; here a
network takes 8 bytes a band: the hash of its content and the network's position in one number. New
networks are kept in a small dictionary until they fill a sorted block; four blocks of one size are
merged into one of the next, so that an entry is sorted once per size, five times up to a million
networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WAITING = 1024
"""Networks in the dictionary before they are moved to a sorted block."""
_MERGED = 4
"""Blocks of one size that are merged into one of the next."""
_POSITION_BITS = 26
"""Bits of an entry for the position; the upper 38 are the hash. With a million networks of 25
bands one query in 440 has a hash collision (25 * 25e6 / 2**38), which costs one more comparison."""
_POSITIONS = np.uint64((1 << _POSITION_BITS) - 1)
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
        self._blocks: list[NDArray[np.uint64]] = []
        self._recent: dict[int, list[int]] = {}
        self._keys: list[NDArray[np.uint64]] = []
        self._count = 0

    @property
    def nbytes(self) -> int:
        """Memory of the sorted blocks."""
        return sum(block.nbytes for block in self._blocks)

    def keys(self, signature: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """(bands,) a hash of each band's content and index, in the upper 38 bits."""
        table = signature[: self._bands * self._rows].reshape(self._bands, self._rows)
        keys: NDArray[np.uint64] = (table * self._factors).sum(axis=1)
        keys += self._numbers
        keys ^= keys >> np.uint64(32)
        keys *= _MULTIPLIER
        keys &= ~_POSITIONS
        return keys

    def add(self, keys: NDArray[np.uint64]) -> None:
        """Append the next position."""
        for key in keys.tolist():
            self._recent.setdefault(key, []).append(self._count)
        self._keys.append(keys)
        self._count += 1
        if len(self._keys) == _WAITING:
            self._settle()

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
        """Positions that share a band, ascending, and how many bands they share."""
        waiting = [self._recent[key] for key in keys.tolist() if key in self._recent]
        parts = [np.array(sum(waiting, []), np.uint64)]
        edges = np.concatenate((keys, keys | _POSITIONS))
        for block in self._blocks:
            found = block.searchsorted(edges).tolist()
            starts, ends = found[: keys.size], found[keys.size :]
            parts += [block[a:b] for a, b in zip(starts, ends, strict=True) if a < b]
        hits = np.concatenate(parts) & _POSITIONS
        if not hits.size:
            return hits, np.empty(0, np.intp)
        hits.sort()
        ends = np.flatnonzero(np.concatenate((hits[1:] != hits[:-1], [True])))
        shared = ends.copy()
        shared[1:] -= ends[:-1]
        shared[0] += 1
        return hits[ends], shared

    def _settle(self) -> None:
        positions = np.arange(self._count - len(self._keys), self._count, dtype=np.uint64)
        block = np.concatenate(self._keys) | np.repeat(positions, self._bands)
        self._keys, self._recent = [], {}
        block.sort()
        self._blocks.append(block)
        while len(equal := self._blocks[-_MERGED:]) == _MERGED and equal[0].size == block.size:
            block = np.concatenate(equal)
            block.sort(kind="stable")  # a stable sort merges sorted runs
            self._blocks[-_MERGED:] = [block]
