"""The rows of ``run.db`` as the dataclasses of :mod:`archloop.types`, and back."""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from archloop.store.tables import (
    CANDIDATES,
    COMPLETIONS,
    CYCLES,
    DECISIONS,
    MEASURES,
    META,
    REQUESTS,
)
from archloop.types import (
    PROFILE,
    Candidate,
    Completion,
    CycleStats,
    Decision,
    GraphSketch,
    NoveltyScores,
    Origin,
    Outcome,
    Request,
    Verdict,
)

DECIDED = frozenset(
    {Outcome.NEAR_DUPLICATE, Outcome.BELOW_THRESHOLD, Outcome.QUARANTINED, Outcome.ACCEPTED}
)
"""The outcomes that are decided; all others end with the verdict."""

_VERDICT_MEASURES = (
    "n_params",
    "first_epoch_accuracy",
    "train_seconds",
    "harness_accuracy",
    "work",
)
"""The fields of a :class:`Verdict` that are measures."""

_OUTPUT = "output_"
"""Measures that are the outputs of a graph's sketch, by their number."""
_MOTIF = "motif: "
"""Measures that are the motifs of a graph's sketch, by their names."""

_COUNTS = frozenset({"n_params"})
"""Measures with a field of :class:`Candidate` that is a whole number."""

_CANDIDATE_FIELDS = {field.name for field in fields(Candidate)}.intersection(_VERDICT_MEASURES)
_SCORES = tuple(f.name for f in fields(NoveltyScores) if f.name != "rejected_by")
_OF_CANDIDATE = (DECISIONS.c.cycle == CANDIDATES.c.cycle) & (
    DECISIONS.c.index == CANDIDATES.c.index
)


def candidate_id(cycle: int, index: int) -> str:
    """The id of a candidate, ``cNN-IIII``; numbers with more digits have them all."""
    return f"c{cycle:02d}-{index:04d}"


def get_meta(db: Connection, key: str, default: Any = None) -> Any:
    """The JSON value under a key of the table ``meta``, or ``default``."""
    row = db.execute(sa.select(META.c.value).where(META.c.key == key)).first()
    return default if row is None else row.value


def set_meta(db: Connection, key: str, value: Any) -> None:
    """Keep a JSON value under a key of the table ``meta``, in place of what was there."""
    db.execute(META.delete().where(META.c.key == key))
    db.execute(META.insert().values(key=key, value=value))


def count(db: Connection, table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
    """How many rows of a table there are."""
    return db.execute(sa.select(sa.func.count()).select_from(table).where(*where)).scalar_one()


def of_request(request: Request) -> dict[str, Any]:
    """The row of a request."""
    origin = asdict(request.origin) | {"parents": list(request.origin.parents)}
    return asdict(request) | {"messages": list(request.messages), "origin": origin}


def requests(db: Connection, cycle: int) -> list[Request]:
    """The requests of a cycle, in index order."""
    query = REQUESTS.select().where(REQUESTS.c.cycle == cycle).order_by(REQUESTS.c.index)
    return [_request(dict(row)) for row in numeric(REQUESTS.c, db.execute(query))]


def _request(row: dict[str, Any]) -> Request:
    origin = row["origin"]
    row["origin"] = Origin(**{**origin, "parents": tuple(origin["parents"])})
    row["messages"] = tuple(row["messages"])
    return Request(**row)


def completions(db: Connection, cycle: int, *where: sa.ColumnElement[bool]) -> list[Completion]:
    """The completions of a cycle, in index order."""
    query = COMPLETIONS.select().where(COMPLETIONS.c.cycle == cycle, *where)
    found = numeric(COMPLETIONS.c, db.execute(query.order_by(COMPLETIONS.c.index)))
    return [Completion(**row) for row in found]


def of_measures(verdict: Verdict) -> list[dict[str, Any]]:
    """Name and value of what was measured."""
    measured = [(name, getattr(verdict, name)) for name in _VERDICT_MEASURES]
    if (graph := verdict.graph) is not None:
        measured += (graph.profile or {}).items()
        measured += [(f"{_OUTPUT}{place}", n) for place, n in enumerate(graph.outputs or ())]
        measured += [(f"{_MOTIF}{motif}", 1.0) for motif in graph.motifs or ()]
    return [{"name": name, "value": float(v)} for name, v in measured if v is not None]


def candidates(db: Connection, where: Sequence[sa.ColumnElement[bool]]) -> list[Candidate]:
    """Candidates with what was measured and decided, in (cycle, index) order.

    Args:
        db: The database.
        where: Conditions on the columns of ``candidates`` and ``decisions``.
    """
    decided = [c for c in DECISIONS.c if c.key in (*_SCORES, "rejection_count")]
    outcome = sa.func.coalesce(DECISIONS.c.outcome, CANDIDATES.c.outcome).label("outcome")
    columns = [*(c for c in CANDIDATES.c if c.key != "outcome"), outcome, *decided]
    joined = CANDIDATES.outerjoin(DECISIONS, _OF_CANDIDATE)
    query = sa.select(*columns).select_from(joined).where(*where)
    measures = _measures(db, where)
    found = numeric(columns, db.execute(query.order_by(CANDIDATES.c.cycle, CANDIDATES.c.index)))
    return [_candidate(dict(row), measures[row["cycle"], row["index"]]) for row in found]


def _measures(
    db: Connection, where: Sequence[sa.ColumnElement[bool]]
) -> dict[tuple[int, int], dict[str, float]]:
    """What was measured of the candidates that meet the conditions, by cycle and index."""
    joined = MEASURES.join(CANDIDATES).outerjoin(DECISIONS, _OF_CANDIDATE)
    query = sa.select(*MEASURES.c).select_from(joined).where(*where).order_by(MEASURES.c.name)
    by_key: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for row in numeric(MEASURES.c, db.execute(query)):
        by_key[row["cycle"], row["index"]][row["name"]] = row["value"]
    return by_key


def _candidate(row: dict[str, Any], measures: dict[str, float]) -> Candidate:
    hash, shingles = row.pop("graph_hash"), row.pop("graph_shingles")
    places = range(sum(name.startswith(_OUTPUT) for name in measures))
    outputs = tuple(measures.pop(f"{_OUTPUT}{place}") for place in places) or None
    row["outcome"], row["flags"] = Outcome(row["outcome"]), tuple(row["flags"])
    for name in _CANDIDATE_FIELDS & measures.keys():
        row[name] = int(measures.pop(name)) if name in _COUNTS else measures.pop(name)
    motifs = tuple(sorted(n.removeprefix(_MOTIF) for n in measures if n.startswith(_MOTIF))) or None
    measures = {name: v for name, v in measures.items() if not name.startswith(_MOTIF)}
    profile = {name: measures[name] for name in (*PROFILE, "macs") if name in measures} or None
    return Candidate(
        id=candidate_id(row["cycle"], row["index"]),
        graph=None if hash is None else GraphSketch(hash, shingles, outputs, profile, motifs),
        measures=measures,
        **row,
    )


def outcomes(db: Connection, cycle: int | None) -> Counter[Outcome]:
    """How many candidates of one cycle, or of all, have each outcome."""
    outcome = sa.func.coalesce(DECISIONS.c.outcome, CANDIDATES.c.outcome)
    joined = CANDIDATES.outerjoin(DECISIONS, _OF_CANDIDATE)
    query = sa.select(outcome, sa.func.count()).select_from(joined).group_by(outcome)
    if cycle is not None:
        query = query.where(CANDIDATES.c.cycle == cycle)
    return Counter({Outcome(name): n for name, n in db.execute(query)})


def of_decision(decision: Decision) -> dict[str, Any]:
    """The row of a decision, without its cycle and index."""
    return decision.scores.for_row() | {
        "outcome": decision.outcome.value,
        "rejected_by": list(decision.rejected_by),
        "rejection_count": decision.rejection_count,
        "near_duplicate_kinds": list(decision.scores.rejected_by),
    }


def decisions(db: Connection, cycle: int | None) -> list[Decision]:
    """What was decided in one cycle, or in all, in (cycle, index) order."""
    query = DECISIONS.select().order_by(DECISIONS.c.cycle, DECISIONS.c.index)
    if cycle is not None:
        query = query.where(DECISIONS.c.cycle == cycle)
    return [_decision(row) for row in numeric(DECISIONS.c, db.execute(query))]


def _decision(row: sa.RowMapping) -> Decision:
    kinds = tuple(row["near_duplicate_kinds"])
    return Decision(
        id=candidate_id(row["cycle"], row["index"]),
        outcome=Outcome(row["outcome"]),
        scores=NoveltyScores(**{name: row[name] for name in _SCORES}, rejected_by=kinds),
        rejection_count=row["rejection_count"],
        rejected_by=tuple(row["rejected_by"]),
    )


def cycles(db: Connection) -> list[CycleStats]:
    """The statistics of the committed cycles, in order."""
    found = numeric(CYCLES.c, db.execute(CYCLES.select().order_by(CYCLES.c.cycle)))
    return [CycleStats(**{**row, "accuracies": tuple(row["accuracies"])}) for row in found]


def numeric(
    columns: Iterable[sa.ColumnElement[Any]], found: sa.CursorResult[Any]
) -> Iterator[sa.RowMapping]:
    """The rows of the given columns, which SQLite lets hold text where a number belongs.

    Raises:
        ValueError: One does.
    """
    places = [i for i, c in enumerate(columns) if isinstance(c.type, sa.Integer | sa.Double)]
    numbers = operator.itemgetter(*places)
    for row in found:
        if not {str, bytes}.isdisjoint(map(type, numbers(row))):
            raise ValueError(f"text in place of a number: {row!r:.200}")
        yield row._mapping  # noqa: SLF001 - the public name of a row as a mapping
