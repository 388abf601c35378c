"""Nearest known network by MinHash retrieval, and near-duplicate removal (paper, appendix A.1).

The steps are the paper's: 256-permutation signatures, banded locality-sensitive hashing with a
retrieval threshold of 0.85, verification of what was retrieved, near-duplicate above 0.90. One
departure: hits are verified with the exact Jaccard similarity of the shingle sets, not with its
MinHash estimate (mean absolute error 0.016 at 256 permutations), so that decisions near the
threshold are not random. A network that shares no band with the query is not retrieved, and its
similarity counts as 0.0, as in the paper's log.

The 256 values of a signature come from one permutation of all shingles, cut into 256 parts, not
from 256 permutations (Li, Owen and Zhang 2012; an empty part takes the next one's value,
Shrivastava and Li 2014): the estimate has no larger error and takes 10 microseconds instead of 150.

Answers depend only on the content of the index, not on the order of insertion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from archloop.novelty.bands import Bands
from archloop.novelty.tokens import CodeTokenError, View, jaccard, shingles

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from archloop.config import NoveltyConfig

RECALL_AT_THRESHOLD = 0.99
"""Lowest probability that a network exactly at the retrieval threshold is retrieved.

Bands that weigh misses and false hits alike (13 x 19 for 0.85) miss 15 % of the pairs at 0.90;
false hits only cost an exact comparison here, so recall comes first (25 x 10: 99.6 % at 0.85, all
at 0.90).
"""

ESTIMATE_SIGMAS = 4.0
"""Hits whose estimated similarity is this many standard deviations, sqrt(J (1 - J) / permutations),
below the best exact one are not compared exactly: one in 30,000 of them could be more similar."""

MOST_ESTIMATED = 2048
"""Signatures compared for one query. Of more hits those that share the most bands are taken: of
25 bands a pair of similarity 0.90 shares 8.7 on average, one of 0.70 shares 0.7."""


@dataclass(frozen=True)
class Sketch:
    """Shingles and signature of one network."""

    shingles: NDArray[np.uint64]
    """(S,) sorted unique shingle hashes."""
    signature: NDArray[np.uint32]
    """(permutations,) lower half of the least shingle hash in each part of the range of hashes."""


@lru_cache(maxsize=8192)
def kept_shingles(code: str, size: int, view: View) -> NDArray[np.uint64]:
    """Shingles of code, cached, as each cycle of a run compares with the seed networks again."""
    found = shingles(code, size, view)
    found.flags.writeable = False
    return found


class NoveltyIndex:
    """Known networks, searchable by similarity.

    Args:
        config: Shingles, permutations and thresholds.
        view: Tokens as spelled, or folded.
    """

    def __init__(self, config: NoveltyConfig, view: View = "lexical") -> None:
        self.config, self._view = config, view
        # Lower edge of each part of the hash range of 2**64.
        self._edges = np.array(
            [(i << 64) // config.permutations for i in range(config.permutations)], np.uint64
        )
        least = min(config.lsh_threshold, config.near_duplicate_threshold)
        self._bands = Bands(*band_shape(config.permutations, least))
        self._ids: list[str] = []
        self._shingles: dict[str, NDArray[np.uint64]] = {}
        self._signatures = np.empty((64, config.permutations), np.uint32)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id: object) -> bool:
        return id in self._shingles

    def sketch(self, code: str) -> Sketch:
        """Shingles and signature of code, to use it several times.

        Raises:
            CodeTokenError: The code is not a sequence of Python tokens.
        """
        return self.sketch_of(shingles(code, self.config.shingle_size, self._view))

    def sketch_of(self, found: NDArray[np.uint64]) -> Sketch:
        """The sketch of (S,) sorted unique shingle hashes, of text or of a graph."""
        if not found.size:
            top = np.full(self.config.permutations, np.iinfo(np.uint32).max, np.uint32)
            return Sketch(found, top)
        # Shingle hashes are sorted, so the least of each part follows its edge; an empty part takes
        # the next one on the circle.
        first = np.searchsorted(found, self._edges)
        return Sketch(found, found.take(first, mode="wrap").astype(np.uint32))

    def add(self, id: str, code: str | Sketch) -> None:
        """Make a network known; adding the same network under the same id again changes nothing.

        Raises:
            CodeTokenError: The code is not a sequence of Python tokens.
            ValueError: The id already names a different network.
        """
        sketch = self.sketch(code) if isinstance(code, str) else code
        if id in self._shingles:
            if not np.array_equal(self._shingles[id], sketch.shingles):
                raise ValueError(f"{id}: already in the index with other code")
            return
        position = len(self._ids)
        if position == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.empty_like(self._signatures)])
        self._signatures[position] = sketch.signature
        self._shingles[id] = sketch.shingles
        self._ids.append(id)
        self._bands.add(self._bands.keys(sketch.signature))

    @property
    def bytes_per_network(self) -> float:
        """Memory of shingles, signatures and bands, divided by the networks."""
        shingle_bytes = sum(found.nbytes for found in self._shingles.values())
        used = shingle_bytes + self._signatures.nbytes + self._bands.nbytes
        return used / max(len(self._ids), 1)

    def query(
        self, code: str | Sketch, exclude: str | None = None, above: float = 0.0
    ) -> tuple[float, str | None]:
        """The most similar known network.

        Args:
            code: The network's code, or its sketch.
            exclude: Id of a known network to leave out (the queried one itself).
            above: Similarities that matter; those estimated far below it are not looked at.

        Returns:
            Exact Jaccard similarity and id of the most similar network retrieved, the first by id
            among equals; ``(0.0, None)`` if nothing was retrieved.

        Raises:
            CodeTokenError: The code is not a sequence of Python tokens.
        """
        sketch = self.sketch(code) if isinstance(code, str) else code
        best, nearest, last, floor = 0.0, None, 2.0, 0.0
        least = above - self._margin(above) if above else 0.0
        for estimate, position in self._retrieve(sketch):
            if estimate < last:
                # The search stops only between different estimates, so that ties do not depend on
                # order.
                last, floor = estimate, max(least, best - self._margin(best))
            if estimate < floor:
                break
            id = self._ids[position]
            if id == exclude:
                continue
            other = self._shingles[id]
            ceiling = min(other.size, sketch.shingles.size) / max(
                other.size, sketch.shingles.size, 1
            )
            if nearest is not None and ceiling < best:
                continue
            similarity = jaccard(sketch.shingles, other)
            if nearest is None or (similarity, nearest) > (best, id):
                best, nearest = similarity, id
        return best, nearest

    def neighbours(self, code: str | Sketch, above: float) -> list[str]:
        """Ids of the retrieved networks whose exact similarity is above a value, in no order.

        Raises:
            CodeTokenError: The code is not a sequence of Python tokens.
        """
        sketch = self.sketch(code) if isinstance(code, str) else code
        found = []
        for estimate, position in self._retrieve(sketch):
            if estimate < above - self._margin(above):
                break
            id = self._ids[position]
            if jaccard(sketch.shingles, self._shingles[id]) > above:
                found.append(id)
        return found

    def _retrieve(self, sketch: Sketch) -> Iterator[tuple[float, int]]:
        """Estimated similarity and position of networks that share a band, most similar first."""
        positions, shared = self._bands.find(self._bands.keys(sketch.signature))
        if positions.size > MOST_ESTIMATED:
            counts = np.bincount(shared)
            least = int(np.argmax(np.cumsum(counts[::-1])[::-1] <= MOST_ESTIMATED))
            # All that share the most bands, where these alone are too many.
            positions = positions[shared >= min(least or shared.max(), shared.max())]
        equal = self._equal(positions, sketch)
        for i in np.argsort(-equal, kind="stable"):
            yield float(equal[i]) / self.config.permutations, int(positions[i])

    def _equal(self, positions: NDArray[np.uint64], sketch: Sketch) -> NDArray[np.int32]:
        """The number of equal values in the sketch and in each signature."""
        same = self._signatures.take(positions, axis=0) == sketch.signature
        equal: NDArray[np.int32] = same.sum(axis=1, dtype=np.int32)
        return equal

    def _margin(self, best: float) -> float:
        variance = best * (1.0 - best) if best > 0.5 else 0.25
        return ESTIMATE_SIGMAS * math.sqrt(variance / self.config.permutations)

    def is_near_duplicate(self, similarity: float) -> bool:
        """Whether a similarity is above the near-duplicate threshold."""
        return similarity > self.config.near_duplicate_threshold


def band_shape(permutations: int, threshold: float) -> tuple[int, int]:
    """Bands and rows a band: the most selective split with the wanted recall at ``threshold``.

    A pair of similarity s shares a band with chance 1 - (1 - s**rows)**bands.
    """
    for rows in range(permutations, 1, -1):
        bands = permutations // rows
        if 1.0 - (1.0 - threshold**rows) ** bands >= RECALL_AT_THRESHOLD:
            return bands, rows
    return permutations, 1


def deduplicate(
    items: Iterable[tuple[str, str, float | None]], config: NoveltyConfig, view: View = "lexical"
) -> tuple[list[str], dict[str, str]]:
    """Keep one network of each group of near-duplicates.

    Networks are visited by priority (the highest first, those without one last), then by id. Each
    is kept unless it is a near-duplicate of one kept before. So the best network of a group stays,
    nothing is dropped on behalf of a network that is itself dropped, and the order of ``items``
    does not matter.

    Args:
        items: (id, code, priority); the priority is an accuracy, or ``None``. Ids are unique.
        config: Shingles, permutations and thresholds.
        view: Tokens as spelled, or folded.

    Returns:
        The kept ids as visited, and each dropped id with the kept id it is most similar to.

    Raises:
        CodeTokenError: Naming the first network that is not Python.
        ValueError: An id occurs twice.
    """
    visited = dict(visit(items, config, view))
    kept = [id for id, nearest in visited.items() if nearest is None]
    return kept, {id: nearest for id, nearest in visited.items() if nearest is not None}


def visit(
    items: Iterable[tuple[str, str, float | None]], config: NoveltyConfig, view: View = "lexical"
) -> Iterator[tuple[str, str | None]]:
    """The decisions of :func:`deduplicate` one at a time: id, and the kept near-duplicate if any.

    The kept networks come first, before the rest is compared.
    """
    index = NoveltyIndex(config, view)
    seen: set[str] = set()
    for id, code, _ in sorted(items, key=_visiting_order):
        if id in seen:
            raise ValueError(f"{id}: given twice")
        seen.add(id)
        try:
            sketch = index.sketch(code)
        except CodeTokenError as error:
            raise CodeTokenError(f"{id}: {error}") from None
        similarity, nearest = index.query(sketch, above=config.near_duplicate_threshold)
        if nearest is not None and index.is_near_duplicate(similarity):
            yield id, nearest
        else:
            index.add(id, sketch)
            yield id, None


def _visiting_order(item: tuple[str, str, float | None]) -> tuple[bool, float, str]:
    id, _, priority = item
    return (priority is None, -(priority or 0.0), id)
