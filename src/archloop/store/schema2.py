"""Reads databases of schema 2, written by archloop 0.1 before requests and decisions had tables.

:func:`convert` copies one into a database of the current schema in memory, so that everything else
knows one schema. What schema 2 did not keep is worked out again from ``config.json`` beside the
database, by the rules as they were then (copied here, as the rules in use may change):

* thresholds and temperatures of the cycles; ``None`` without ``config.json``;
* ``rejected_by`` of the decisions; empty without ``config.json``;
* requests have the seeds of the completions, the temperature of the cycle, no messages (the prompt
  was not stored) and the default origin; without ``config.json`` there are none, as a request has
  a temperature.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from archloop.store import tables as new

SCHEMA = 2

_OLD = sa.MetaData()
_KEY = ("cycle", "index")
_MEASURES = ("n_params", "first_epoch_accuracy", "train_seconds", "harness_accuracy")
_SCORES = (
    "nn_jaccard_train",
    "near_dup_text_train",
    "nn_jaccard_gen",
    "near_dup_text_gen",
    "nn_normalized_train",
    "nn_normalized_gen",
    "nn_graph_train",
    "nn_graph_gen",
    "near_dup_graph_train",
    "near_dup_graph_gen",
    "nearest",
    "nearest_graph",
)
_DECIDED = ("near_duplicate", "below_threshold", "accepted")


def _table(name: str, like: sa.Table, **further: sa.types.TypeEngine[Any]) -> sa.Table:
    """A table of schema 2: columns of today's one, and further ones."""
    columns = [sa.Column(c.name, c.type) for c in like.c if c.name not in further]
    return sa.Table(name, _OLD, *columns, *(sa.Column(*column) for column in further.items()))


_COMPLETIONS = _table("completions", new.COMPLETIONS, seed=sa.BigInteger())
_CANDIDATES = _table(
    "candidates",
    new.CANDIDATES,
    n_params=sa.BigInteger(),
    first_epoch_accuracy=sa.Double(),
    train_seconds=sa.Double(),
    harness_accuracy=sa.Double(),
    rejection_count=sa.Integer(),
    **{name: new.DECISIONS.c[name].type for name in _SCORES},
)
_CYCLES = sa.Table(
    "cycles",
    _OLD,
    *(
        # Named so from the first run on: the floor of ``selection.min_accuracy``.
        sa.Column("n_above_threshold", c.type, key=c.key)
        if c.key == "n_at_floor"
        else sa.Column(c.name, c.type)
        for c in new.CYCLES.c
        if c.key not in {"threshold", "temperature", "decided"}
    ),
)


def convert(old: Connection, where: str) -> Engine:
    """A copy of a database of schema 2, in memory and of the current schema.

    Args:
        old: The database.
        where: Its path or URL; ``config.json`` is read from the same folder.

    Raises:
        ValueError, TypeError: A row holds something else than the store wrote.
    """
    config = _config(where)
    # One connection, as the database is gone with it; a pool of one gives it to a thread at a time.
    engine = sa.create_engine(
        "sqlite://",
        poolclass=sa.QueuePool,
        pool_size=1,
        max_overflow=0,
        connect_args={"check_same_thread": False},
    )
    cycles = _cycles(old, config)
    candidates = _rows(old, _CANDIDATES)
    thresholds = {row["cycle"]: row["threshold"] for row in cycles}
    tables: dict[sa.Table, list[dict[str, Any]]] = {
        new.META: [
            row | {"value": new.SCHEMA} if row["key"] == new.SCHEMA_KEY else row
            for row in _rows(old, new.META)
        ],
        new.REQUESTS: _requests(old, config, cycles),
        new.COMPLETIONS: [_only(new.COMPLETIONS, row) for row in _rows(old, _COMPLETIONS)],
        new.CANDIDATES: [
            _only(new.CANDIDATES, row) | {"outcome": _ladder(row["outcome"])} for row in candidates
        ],
        new.MEASURES: [
            {key: row[key] for key in _KEY} | {"name": name, "value": row[name]}
            for row in candidates
            for name in _MEASURES
            if row[name] is not None
        ],
        new.DECISIONS: [
            _decision(row, config, thresholds.get(row["cycle"]))
            for row in candidates
            if row["outcome"] in _DECIDED
        ],
        new.CYCLES: cycles,
        # The table came later than the first runs.
        new.SPANS: _rows(old, new.SPANS) if sa.inspect(old).has_table(new.SPANS.name) else [],
    }
    try:
        with engine.begin() as db:
            new.TABLES.create_all(db)
            for table, rows in tables.items():
                if rows:
                    db.execute(table.insert(), rows)
    except BaseException:
        engine.dispose()
        raise
    return engine


def written_by(db: Connection) -> str:
    """The version of archloop that wrote a database, as far as it says so."""
    sessions: Any = db.scalar(sa.select(new.META.c.value).where(new.META.c.key == "sessions"))
    try:
        return f"archloop {sessions[-1]['versions']['archloop']} (schema {SCHEMA})"
    except (TypeError, LookupError):
        return f"an earlier archloop (schema {SCHEMA})"


def _config(where: str) -> dict[str, Any] | None:
    """The stored configuration beside a database; ``None``: there is none to read."""
    try:
        found = json.loads((Path(where).parent / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _rows(db: Connection, table: sa.Table) -> list[dict[str, Any]]:
    columns = [column.label(column.key) for column in table.c]
    return [dict(row) for row in db.execute(sa.select(*columns)).mappings()]


def _only(table: sa.Table, row: dict[str, Any]) -> dict[str, Any]:
    return {column.key: row[column.key] for column in table.c}


def _ladder(outcome: str) -> str:
    return "valid" if outcome in _DECIDED else outcome


def _cycles(db: Connection, config: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The cycles with their thresholds and temperatures, in order."""
    rows = sorted(_rows(db, _CYCLES), key=itemgetter("cycle"))
    for n, row in enumerate(rows):
        row["threshold"] = row["temperature"] = None
        row["decided"] = {}
        if config is not None:
            row["threshold"] = _threshold(config, [r["accuracies"] for r in rows[: n + 1]])
            row["temperature"] = _temperature(config, rows[:n])
    return rows


def _requests(
    db: Connection, config: dict[str, Any] | None, cycles: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The requests that the completions answer; none without a configuration."""
    if config is None:
        return []
    pinned = db.scalar(sa.select(new.META.c.value).where(new.META.c.key == "pinned")) or {}
    task = pinned.get("task", _get(config, "task", "name", "auto"))
    columns = (_COMPLETIONS.c.cycle, _COMPLETIONS.c.index, _COMPLETIONS.c.seed)
    found = db.execute(sa.select(*columns).order_by(*columns[:2])).mappings()
    requests: list[dict[str, Any]] = []
    for cycle, answered in groupby(found, key=itemgetter("cycle")):
        temperature = _temperature(config, [row for row in cycles if row["cycle"] < cycle])
        origin: dict[str, Any] = {
            "operator": "design",
            "prompt": pinned.get("prompt"),
            "parents": [],
        }
        rest = {"task": task, "messages": [], "temperature": temperature, "origin": origin}
        requests += [dict(row) | rest for row in answered]
    return requests


def _decision(
    row: dict[str, Any], config: dict[str, Any] | None, threshold: float | None
) -> dict[str, Any]:
    kinds = _near_duplicate_kinds(row, config)
    reasons = {
        "near_duplicate": kinds,
        "below_threshold": _limits(row, config, threshold),
        "accepted": [],
    }
    return {key: row[key] for key in (*_KEY, "outcome", "rejection_count", *_SCORES)} | {
        "rejected_by": reasons[row["outcome"]],
        "near_duplicate_kinds": kinds,
    }


# The rules as they were, on the stored configuration. Its absent keys have the defaults of then.


def _get(config: dict[str, Any], section: str, key: str, default: Any) -> Any:
    return config.get(section, {}).get(key, default)


def _threshold(config: dict[str, Any], accuracies: Sequence[Sequence[float]]) -> float:
    """The first-epoch accuracy to reach in a cycle, the last of those given."""
    floor: float = _get(config, "selection", "min_accuracy", 0.4)
    percentile = _get(config, "selection", "percentile", None)
    window: int = _get(config, "selection", "window", 3)
    recent = sorted(a for cycle in accuracies[-window:] for a in cycle)
    if percentile is None or not recent:
        return floor
    rank = percentile / 100 * (len(recent) - 1)
    low = int(rank)
    high = min(low + 1, len(recent) - 1)
    value: float = recent[low] + (rank - low) * (recent[high] - recent[low])
    return max(floor, value)


def _temperature(config: dict[str, Any], before: Iterable[dict[str, Any]]) -> float:
    """The sampling temperature of a cycle, after those before it."""
    lowest: float = _get(config, "generation", "temperature", 0.2)
    step: float = _get(config, "loop", "temperature_step", 0.0)
    if not step:
        return lowest
    highest = _get(config, "loop", "temperature_max", 2.0)
    least_valid = _get(config, "loop", "least_valid", 0.85)
    most_near_duplicates = _get(config, "loop", "most_near_duplicates", 0.1)
    most, steps = int((highest - lowest) / step + 1e-9), 0
    for cycle in before:
        if cycle["n_valid"] < least_valid * cycle["n_gen"]:
            steps = max(steps - 1, 0)
        elif cycle["n_near_duplicate"] > most_near_duplicates * cycle["n_valid"]:
            steps = min(steps + 1, most)
    return round(lowest + steps * step, 6)


def _near_duplicate_kinds(row: dict[str, Any], config: dict[str, Any] | None) -> list[str]:
    """The configured kinds of novelty that call a candidate a near-duplicate."""
    if config is None:
        return []
    limit: float = _get(config, "novelty", "near_duplicate_threshold", 0.9)
    lexical = bool(row["near_dup_text_train"] or row["near_dup_text_gen"])
    normalized = max(row["nn_normalized_train"] or 0.0, row["nn_normalized_gen"] or 0.0)
    graph = bool(row["near_dup_graph_train"] or row["near_dup_graph_gen"])
    says = {
        "lexical": lexical,
        "normalized": normalized > limit,
        "graph": lexical if row["graph_hash"] is None else graph,
    }
    kinds = _get(config, "novelty", "kind", ["lexical"])
    return [kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if says.get(kind)]


def _limits(
    row: dict[str, Any], config: dict[str, Any] | None, threshold: float | None
) -> list[str]:
    """The keys whose limits a candidate below the threshold breaks."""
    if config is None or threshold is None:
        return []
    floor = _get(config, "selection", "min_accuracy", 0.4)
    seconds = _get(config, "selection", "max_train_seconds", None)
    broken = []
    if (row["first_epoch_accuracy"] or 0.0) < threshold:
        broken.append(f"selection.{'min_accuracy' if threshold <= floor else 'percentile'}")
    if seconds is not None and (row["train_seconds"] or 0.0) > seconds:
        broken.append("selection.max_train_seconds")
    return broken
