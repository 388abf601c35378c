"""Networks in files compared with a corpus and with each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from archloop.code.policy import check, unreadable
from archloop.config import RunConfig
from archloop.corpus.seeds.build import PROBE_SUBJECT
from archloop.evaluation.alone import Source
from archloop.evaluation.graphs import graphs_of
from archloop.novelty import NoveltyJudge
from archloop.progress import Silent
from archloop.search.selection import select
from archloop.types import Candidate, GraphSketch, NoveltyScores, Outcome


@dataclass(frozen=True)
class Compared:
    """A network beside what is known."""

    row: Candidate
    nearest: str | None
    """Source of the most similar known network."""
    new_motifs: tuple[str, ...] | None
    """Its operator motifs that no known network has, nor one before it; ``None``: not traced."""


def compare_files(
    sources: Sequence[Source], known: dict[str, str], config: RunConfig, *, graphs: bool
) -> Iterator[Compared]:
    """Each network beside the known ones, in order.

    A similarity of the row is ``None`` where the index retrieved no neighbour; it looks for those
    as similar as ``novelty.lsh_threshold``. (A run keeps 0.0 there, as in the paper's log.)

    Args:
        sources: The networks, in the order in which they count.
        known: Code of the networks they are compared with, by id.
        config: Kinds of novelty, and limits of the sandbox for graphs, which are traced as those of
            seeds are (3x32x32, 10 classes).
        graphs: Trace and compare graphs, also if they are no configured kind.
    """
    faults = {s.id: unreadable(s.fault) or check(s.code) for s in sources}
    sound = {
        s.id: s.code
        for s in sources
        if (fault := faults[s.id]) is None or fault.outcome is not Outcome.SYNTAX_ERROR
    }
    traced = graphs or "graph" in config.novelty.kind
    sketches = _sketches(known | sound, config) if traced else {}
    judge = NoveltyJudge(config.novelty)
    for id, code in known.items():
        judge.add_known(id, code, sketches.get(id))
    judge.start_cycle()
    rows = {s.id: _unjudged(i, s, sketches.get(s.id)) for i, s in enumerate(sources)}
    motifs = {m for id in known for m in _motifs(sketches.get(id)) or ()}
    decisions = select((rows[s.id] for s in sources if s.id in sound), judge, limits=lambda _: ())
    for name in (s.id for s in sources):
        row = rows[name]
        if name not in sound:
            fault = faults[name]
            assert fault is not None
            yield Compared(replace(row, outcome=fault.outcome, error=fault.error), None, None)
            continue
        decision = next(decisions)
        scores, own = decision.scores, _motifs(row.graph)
        judged = replace(
            row,
            # Nothing is accepted here, only found to be new.
            outcome=Outcome.VALID if decision.accepted else decision.outcome,
            rejection_count=decision.rejection_count,
            **_retrieved(scores),
        )
        nearest = None if scores.nearest is None else (known | sound)[scores.nearest]
        yield Compared(
            judged, nearest, None if own is None else tuple(m for m in own if m not in motifs)
        )
        motifs.update(own or ())


def _unjudged(index: int, source: Source, graph: GraphSketch | None) -> Candidate:
    measures = {} if graph is None else dict(graph.profile or {})
    return Candidate(
        source.id, None, index, Outcome.VALID, code=source.code, graph=graph, measures=measures
    )


def _motifs(graph: GraphSketch | None) -> tuple[str, ...] | None:
    return None if graph is None else graph.motifs


def _sketches(codes: dict[str, str], config: RunConfig) -> dict[str, GraphSketch | None]:
    found = graphs_of(
        list(codes.values()),
        shape=PROBE_SUBJECT.shape,
        classes=PROBE_SUBJECT.classes,
        config=config.sandbox,
        observer=Silent(),
    )
    return dict(zip(codes, found, strict=True))


def _retrieved(scores: NoveltyScores) -> dict[str, Any]:
    """The fields of a row, without the similarities that stand for no neighbour."""
    fields = scores.for_row()
    return {k: None if k.startswith("nn_") and not v else v for k, v in fields.items()}
