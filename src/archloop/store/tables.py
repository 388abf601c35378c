"""The tables of ``run.db``, and how the database is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url

from archloop.errors import UsageError

SCHEMA = 3
"""Raised when a table changes. :mod:`archloop.store.schema2` reads databases of schema 2; all
others are refused."""

SCHEMA_KEY = "schema"
_BUSY_SECONDS = 60.0
"""How long a writer waits for another's transaction; each takes milliseconds."""

TABLES = sa.MetaData()

META = sa.Table(
    "meta",
    TABLES,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
)

REQUESTS = sa.Table(
    "requests",
    TABLES,
    sa.Column("cycle", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("task", sa.String, nullable=False),
    sa.Column("messages", sa.JSON, nullable=False),
    sa.Column("temperature", sa.Double, nullable=False),
    sa.Column("origin", sa.JSON, nullable=False),
)
"""What a strategy asked for, before anything is sampled."""

COMPLETIONS = sa.Table(
    "completions",
    TABLES,
    sa.Column("cycle", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("n_tokens", sa.Integer, nullable=False),
    sa.Column("finish_reason", sa.String, nullable=False),
    sa.ForeignKeyConstraint(
        ["cycle", "index"], ["requests.cycle", "requests.index"], name="of_request"
    ),
)

CANDIDATES = sa.Table(
    "candidates",
    TABLES,
    sa.Column("cycle", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("outcome", sa.String, nullable=False, index=True),
    sa.Column("error", sa.Text),
    sa.Column("code", sa.Text),
    sa.Column("code_sha256", sa.String),
    sa.Column("graph_hash", sa.String),
    sa.Column("graph_shingles", sa.LargeBinary),
    sa.Column("isolation", sa.String),
    sa.Column("protocol", sa.String),
    sa.Column("training", sa.String),
    sa.Column("flags", sa.JSON, nullable=False),
    sa.ForeignKeyConstraint(
        ["cycle", "index"], ["completions.cycle", "completions.index"], name="of_completion"
    ),
)
"""How far each completion came: ``outcome`` ends at ``valid``; what was selected is decided."""

MEASURES = sa.Table(
    "measures",
    TABLES,
    sa.Column("cycle", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.Double, nullable=False),
    sa.ForeignKeyConstraint(
        ["cycle", "index"], ["candidates.cycle", "candidates.index"], name="measured_candidate"
    ),
)
"""What was measured of a candidate, by name; no row: it was not measured."""

DECISIONS = sa.Table(
    "decisions",
    TABLES,
    sa.Column("cycle", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("outcome", sa.String, nullable=False, index=True),
    sa.Column("rejected_by", sa.JSON, nullable=False),
    sa.Column("rejection_count", sa.Integer, nullable=False),
    sa.Column("nn_jaccard_train", sa.Double, nullable=False),
    sa.Column("near_dup_text_train", sa.Boolean, nullable=False),
    sa.Column("nn_jaccard_gen", sa.Double, nullable=False),
    sa.Column("near_dup_text_gen", sa.Boolean, nullable=False),
    sa.Column("nn_normalized_train", sa.Double, nullable=False),
    sa.Column("nn_normalized_gen", sa.Double, nullable=False),
    sa.Column("nn_graph_train", sa.Double),
    sa.Column("nn_graph_gen", sa.Double),
    sa.Column("near_dup_graph_train", sa.Boolean),
    sa.Column("near_dup_graph_gen", sa.Boolean),
    sa.Column("nearest", sa.String),
    sa.Column("nearest_graph", sa.String),
    sa.Column("near_duplicate_kinds", sa.JSON, nullable=False),
    sa.ForeignKeyConstraint(
        ["cycle", "index"], ["candidates.cycle", "candidates.index"], name="decided_candidate"
    ),
)
"""What was decided about each valid candidate of a committed cycle, with the similarities that it
was decided on. ``near_duplicate_kinds`` are the kinds of novelty that call it a near-duplicate,
whether that rejects it or not."""

CYCLES = sa.Table(
    "cycles",
    TABLES,
    sa.Column("cycle", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("n_gen", sa.Integer, nullable=False),
    sa.Column("n_valid", sa.Integer, nullable=False),
    sa.Column("n_at_floor", sa.Integer, nullable=False),
    sa.Column("n_near_duplicate", sa.Integer, nullable=False),
    sa.Column("n_accepted", sa.Integer, nullable=False),
    sa.Column("accuracies", sa.JSON, nullable=False),
    sa.Column("corpus_size", sa.Integer, nullable=False),
    sa.Column("adapter", sa.String, nullable=False),
    sa.Column("corpus_sha256", sa.String, nullable=False),
    sa.Column("outcomes", sa.JSON, nullable=False),
    sa.Column("wall_seconds", sa.Double),
    sa.Column("n_tokens", sa.Integer),
    sa.Column("threshold", sa.Double),
    sa.Column("temperature", sa.Double),
    sa.Column("decided", sa.JSON, nullable=False),
)

SPANS = sa.Table(
    "spans",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("cycle", sa.Integer, nullable=False),
    sa.Column("stage", sa.String, nullable=False),
    sa.Column("index", sa.Integer),
    sa.Column("begin", sa.Double, nullable=False),
    sa.Column("end", sa.Double, nullable=False),
)


def database_url(url_or_path: str | Path, *, read_only: bool) -> URL:
    """The SQLAlchemy URL of a database file, or the given URL.

    Raises:
        UsageError: ``read_only``, and the file does not exist.
    """
    if isinstance(url_or_path, str) and "://" in url_or_path:
        return make_url(url_or_path)
    path = Path(url_or_path)
    if not read_only:
        return URL.create("sqlite", database=str(path))
    if not path.is_file():
        raise UsageError(f"{path}: no such run database")
    # SQLite shares a write-ahead log through an index file beside it, which a reader writes too and
    # removes if it is the last to close. Where it cannot and there is no log, nobody else writes.
    if os.access(path.parent, os.W_OK):
        how = {"mode": "rw"}
    elif path.with_name(path.name + "-wal").exists():
        how = {"mode": "ro"}
    else:
        how = {"immutable": "1"}
    return URL.create("sqlite", database=path.resolve().as_uri(), query={**how, "uri": "true"})


def open_engine(url: URL) -> Engine:
    """An engine on the database; SQLite gets a write-ahead log, foreign keys and real transactions.

    A transaction of a connection with the execution option ``writes`` takes the write lock at its
    start and waits for it up to a minute; all others are read snapshots.
    """
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url)
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_SECONDS})
    read_only = "uri" in url.query
    sa.event.listen(engine, "begin", _begin)

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        # SQLAlchemy begins transactions itself (below), so that reads are snapshots too.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")
        if read_only:
            connection.execute("PRAGMA query_only=ON")
        else:
            connection.execute("PRAGMA journal_mode=WAL")
            # FULL syncs the log at every commit: milliseconds beside the seconds a candidate takes.
            # NORMAL would outlive a killed process, but not a power failure.
            connection.execute("PRAGMA synchronous=FULL")

    return engine


def _begin(connection: Connection) -> None:
    # A writer takes its turn at once; a reader that turns writer midway could only fail.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
