"""Compares candidates with the corpus (J_train) and their own cycle (J_gen), paper section 3."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from archloop.novelty.index import NoveltyIndex, Sketch, kept_shingles
from archloop.novelty.outputs import OutputIndex, Outputs
from archloop.types import GraphSketch, NoveltyScores

if TYPE_CHECKING:
    from archloop.config import NoveltyConfig


@dataclass(frozen=True)
class _Sketches:
    """One network in every view."""

    lexical: Sketch
    normalized: Sketch
    graph: Sketch | None
    graph_hash: str | None
    outputs: Outputs | None


class _Known:
    """Known networks in every view, and the first network of each graph hash."""

    def __init__(self, config: NoveltyConfig) -> None:
        self._size = config.shingle_size
        self.lexical = NoveltyIndex(config)
        self.normalized = NoveltyIndex(config, "normalized")
        self.graph = NoveltyIndex(config)
        self._by_hash: dict[str, set[str]] = {}
        self._outputs = OutputIndex()

    def sketches(self, code: str, graph: GraphSketch | None) -> _Sketches:
        shingles = None if graph is None else np.frombuffer(graph.shingles, "<u8")
        return _Sketches(
            self.lexical.sketch_of(kept_shingles(code, self._size, "lexical")),
            self.normalized.sketch_of(kept_shingles(code, self._size, "normalized")),
            None if shingles is None else self.graph.sketch_of(shingles.astype(np.uint64)),
            None if graph is None else graph.hash,
            None if graph is None else graph.outputs,
        )

    def add(self, id: str, found: _Sketches) -> None:
        self.lexical.add(id, found.lexical)
        self.normalized.add(id, found.normalized)
        if found.graph is not None and found.graph_hash is not None:
            self.graph.add(id, found.graph)
            self._by_hash.setdefault(found.graph_hash, set()).add(id)
            if found.outputs is not None:
                self._outputs.add(id, found.outputs)

    def nearest_graph(self, id: str, found: _Sketches) -> tuple[float, str | None, bool]:
        """Similarity and id of the nearest graph, and whether it computes the same."""
        assert found.graph is not None
        same = self._by_hash.get(found.graph_hash or "", set()) - {id}
        if not same and found.outputs is not None:
            same = self._outputs.same(found.outputs) - {id}
        if same:
            return 1.0, min(same), True
        similarity, nearest = self.graph.query(found.graph, exclude=id)
        return similarity, nearest, False


class NoveltyJudge:
    """Scores candidates against the corpus and against what this cycle accepted.

    An accepted network counts in J_gen for the rest of its cycle, and in J_train from the next
    cycle on, when it is in the corpus. (The paper's log shows J_train 0.0 beside J_gen 0.8047,
    which rules out a J_train that already holds the cycle's own.) Candidates must come in a fixed
    order. Every view is scored; ``config.kind`` says which of them reject. By text a near-duplicate
    is above the threshold, by graph it computes the same: its hash is known, or it gives the same
    outputs as a known one. For a candidate without a graph the lexical view decides.
    """

    def __init__(self, config: NoveltyConfig) -> None:
        self._train, self._gen = _Known(config), _Known(config)
        self._accepted: list[tuple[str, _Sketches]] = []
        self._config = config

    def add_known(self, id: str, code: str, graph: GraphSketch | None = None) -> None:
        """Add a network to J_train: a seed network, or one accepted in an earlier cycle.

        Raises:
            CodeTokenError: The code is not a sequence of Python tokens.
            ValueError: The id already names a different network.
        """
        self._train.add(id, self._train.sketches(code, graph))

    def start_cycle(self) -> None:
        """Move the networks accepted in the last cycle into J_train, and empty J_gen."""
        for id, found in self._accepted:
            self._train.add(id, found)
        self._accepted = []
        self._gen = _Known(self._config)

    def judge(self, id: str, code: str, graph: GraphSketch | None = None) -> NoveltyScores:
        """Score a candidate; a network of the same id is never compared with itself.

        Raises:
            CodeTokenError: The code is not a sequence of Python tokens.
        """
        found, is_near = self._train.sketches(code, graph), self._train.lexical.is_near_duplicate
        train, nearest_train = self._train.lexical.query(found.lexical, exclude=id)
        gen, nearest_gen = self._gen.lexical.query(found.lexical, exclude=id)
        normalized_train, _ = self._train.normalized.query(found.normalized, exclude=id)
        normalized_gen, _ = self._gen.normalized.query(found.normalized, exclude=id)
        scores = NoveltyScores(
            nn_jaccard_train=train,
            near_dup_text_train=is_near(train),
            nn_jaccard_gen=gen,
            near_dup_text_gen=is_near(gen),
            nearest=nearest_gen if gen > train or nearest_train is None else nearest_train,
            nn_normalized_train=normalized_train,
            nn_normalized_gen=normalized_gen,
        )
        if found.graph is not None:
            scores = self._with_graph(id, found, scores)
        lexical = is_near(train) or is_near(gen)
        same = bool(scores.near_dup_graph_train or scores.near_dup_graph_gen)
        says = {
            "lexical": lexical,
            "normalized": is_near(normalized_train) or is_near(normalized_gen),
            "graph": lexical if found.graph is None else same,
        }
        return replace(scores, rejected_by=tuple(k for k in self._config.kind if says[k]))

    def _with_graph(self, id: str, found: _Sketches, scores: NoveltyScores) -> NoveltyScores:
        train, nearest_train, same_train = self._train.nearest_graph(id, found)
        gen, nearest_gen, same_gen = self._gen.nearest_graph(id, found)
        return replace(
            scores,
            nn_graph_train=train,
            nn_graph_gen=gen,
            near_dup_graph_train=same_train,
            near_dup_graph_gen=same_gen,
            nearest_graph=nearest_gen if gen > train or nearest_train is None else nearest_train,
        )

    def accept(self, id: str, code: str, graph: GraphSketch | None = None) -> None:
        """Record that a candidate of the current cycle was accepted.

        Raises:
            CodeTokenError: The code is not a sequence of Python tokens.
            ValueError: The id already names a different network of this cycle.
        """
        found = self._gen.sketches(code, graph)
        self._gen.add(id, found)
        self._accepted.append((id, found))
