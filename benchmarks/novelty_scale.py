"""The novelty index up to a million networks, by simulation.

A synthetic network is the shingle set of a LEMUR network with a share of its shingles replaced by
new ones, as edits of its text would do. Most are far from all others (20 to 80 % replaced, Jaccard
at most 0.67 to their origin); one in 200 is a planted near-duplicate of an earlier one (Jaccard
0.905 to 0.99). Everything is added in one pass. ``ARCHLOOP_SCALE=1000000 python -m benchmarks
novelty_scale`` sets the number of networks; a million takes some 12 GB.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from archloop.config import NoveltyConfig
from archloop.novelty import NoveltyIndex, jaccard, shingles
from benchmarks.novelty import lemur_items
from benchmarks.table import Row

CONFIG = NoveltyConfig()
NETWORKS = 100_000
STAGES = 10
PLANTED = 200
"""One in so many networks is a planted near-duplicate."""
QUERIES = 500
"""Networks looked up after each stage."""

Shingles = NDArray[np.uint64]


@dataclass
class Stage:
    """One tenth of the build."""

    networks: int
    """In the index at its end."""
    adds_per_second: float
    """A second of processor time, as a million networks take a while and are seldom alone."""
    query_ms: float
    """Median of new networks."""
    query_p99_ms: float


@dataclass
class Simulation:
    """What was measured."""

    stages: list[Stage] = field(default_factory=list)
    planted: int = 0
    found: int = 0
    """Planted near-duplicates that the index recognised when they came."""
    bytes_per_network: float = 0.0

    @property
    def recall(self) -> float:
        """Share of the planted near-duplicates that were found."""
        return self.found / max(self.planted, 1)


def edited(base: Shingles, share: float, rng: np.random.Generator) -> Shingles:
    """The set with a share of its members replaced."""
    replaced = round(share * base.size)
    fresh = rng.integers(0, 2**64, replaced, np.uint64)
    kept = rng.permutation(base.size)[replaced:]
    return np.unique(np.concatenate((base[kept], fresh)))


def simulate(bases: list[Shingles], networks: int, seed: int = 0) -> Simulation:
    """Build an index of so many synthetic networks in one pass, and look things up in it."""
    rng = np.random.default_rng(seed)
    index, result = NoveltyIndex(CONFIG), Simulation()
    known: list[Shingles] = []
    for _ in range(STAGES):
        spent = 0.0
        for _ in range(networks // STAGES):
            plant = bool(known) and rng.integers(PLANTED) == 0
            if plant:
                base = known[rng.integers(len(known))]
                found = edited(base, rng.uniform(0.005, 0.049), rng)
                plant = jaccard(base, found) > CONFIG.near_duplicate_threshold
            else:
                base = bases[rng.integers(len(bases))]
                found = edited(base, rng.uniform(0.2, 0.8), rng)
            started = time.process_time()
            sketch = index.sketch_of(found)
            spent += time.process_time() - started
            if plant:
                result.planted += 1
                result.found += index.is_near_duplicate(index.query(sketch)[0])
            started = time.process_time()
            index.add(str(len(known)), sketch)
            spent += time.process_time() - started
            known.append(found)
        waits = []
        for _ in range(QUERIES):
            base = bases[rng.integers(len(bases))]
            sketch = index.sketch_of(edited(base, rng.uniform(0.0, 0.8), rng))
            started = time.perf_counter()
            index.query(sketch)
            waits.append(1000 * (time.perf_counter() - started))
        waits.sort()
        rate = networks // STAGES / spent
        slow = waits[int(0.99 * QUERIES)]
        result.stages.append(Stage(len(known), rate, statistics.median(waits), slow))
    result.bytes_per_network = index.bytes_per_network
    return result


def all_rows() -> Iterator[Row]:
    """Simulate ``ARCHLOOP_SCALE`` networks."""
    networks = int(os.environ.get("ARCHLOOP_SCALE", NETWORKS))
    bases = [shingles(code, CONFIG.shingle_size) for _, code, _ in lemur_items()]
    result = simulate(bases, networks)
    for stage in result.stages:
        yield Row(
            f"index of {stage.networks:,} synthetic networks: query, ms (p99); added a CPU second",
            f"{stage.query_ms:.2f} ({stage.query_p99_ms:.2f}); {stage.adds_per_second:,.0f}",
        )
    first, last = result.stages[0], result.stages[-1]
    yield Row(
        "rate of the last tenth to the first",
        f"{last.adds_per_second:,.0f}",
        f"{first.adds_per_second:,.0f}",
        last.adds_per_second / first.adds_per_second,
    )
    yield Row("median query, ms (goal: at most 1)", f"{last.query_ms:.2f}")
    yield Row("memory of a network, kB", f"{result.bytes_per_network / 1000:.1f}")
    yield Row(
        f"recall of {result.planted:,} planted near-duplicates", f"{result.recall:.4f}", goal=0.99
    )
