"""The record of a run: completions, verdicts and cycle statistics in one database, ``run.db``.

Guarantees: what a method wrote before it returned is there after the process was killed or the
power failed; a method's rows appear together or not at all; other processes may read while one
writes. A row is written once and never taken back, and a committed cycle does not change. Not
covered: two runs writing the same database (the run directory's lock keeps them apart).
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from archloop.errors import ArchloopError, UsageError
from archloop.store.tables import (
    CANDIDATES,
    COMPLETIONS,
    CYCLES,
    META,
    SCHEMA,
    SCHEMA_KEY,
    SPANS,
    TABLES,
    database_url,
    open_engine,
)
from archloop.types import Candidate, Completion, CycleStats, GraphSketch, Outcome, Span, Verdict

_SELECTION_FIELDS = (
    "outcome",
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
    "rejection_count",
    "nearest",
    "nearest_graph",
)
"""What the end of a cycle adds to a valid candidate."""


_DAMAGED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What a row with something else in it than the store writes raises."""


def candidate_id(cycle: int, index: int) -> str:
    """The id of a candidate, ``cNN-IIII``."""
    return f"c{cycle:02d}-{index:04d}"


class Store:
    """The database of one run; see the module's guarantees.

    Args:
        url_or_path: A database file, or an SQLAlchemy URL.
        read_only: Open an existing file and change nothing; works on a read-only disk too.

    Raises:
        UsageError: The file is missing (``read_only``), is no run database, or has another schema;
            later, of any method: it is damaged, or the disk is full.
    """

    def __init__(self, url_or_path: str | Path, *, read_only: bool = False) -> None:
        self._where = str(url_or_path)
        self._engine = open_engine(database_url(url_or_path, read_only=read_only))
        try:
            self._prepare(read_only=read_only)
        except UsageError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the database; the store is not used again."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _prepare(self, *, read_only: bool) -> None:
        """Make the tables of a new database; look at the schema of any other before touching it."""
        with self._read() if read_only else self._write() as db:
            if not read_only and not sa.inspect(db).get_table_names():
                TABLES.create_all(db)
                db.execute(META.insert().values(key=SCHEMA_KEY, value=SCHEMA))
            found = _get_meta(db, SCHEMA_KEY)
        if found != SCHEMA:
            raise UsageError(
                f"{self._where}: written with schema {found}, this archloop reads schema {SCHEMA}; "
                "open it with the version of archloop that wrote it, or a later one"
            )
        if not read_only:
            with self._write() as db:
                SPANS.create(db, checkfirst=True)

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with (
            self._faults_named(),
            self._engine.connect().execution_options(writes=True) as db,
            db.begin(),
        ):
            yield db

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._faults_named(), self._engine.connect() as db, db.begin():
            yield db

    @contextmanager
    def _faults_named(self) -> Iterator[None]:
        """A full disk or a damaged page is a line with the database's name."""
        try:
            yield
        except DBAPIError as error:
            what = "cannot be read or written as a run database"
            raise UsageError(f"{self._where}: {what}: {error.orig}") from None
        except _DAMAGED as error:
            reason = str(error) or type(error).__name__
            raise UsageError(f"{self._where}: a damaged row: {reason}") from None

    def set_meta(self, key: str, value: Any) -> None:
        """Keep one JSON value under a key, in place of what was there.

        Raises:
            ValueError: The key is the store's own.
        """
        if key == SCHEMA_KEY:
            raise ValueError(f"{key!r} is the store's own key")
        with self._write() as db:
            _set_meta(db, key, value)

    def get_meta(self, key: str, default: Any = None) -> Any:
        """The JSON value under a key, or ``default``."""
        with self._read() as db:
            return _get_meta(db, key, default)

    def add_completions(
        self, completions: Sequence[Completion], meta: Mapping[str, Any] | None = None
    ) -> None:
        """Add completions, all or none; one that is there already and the same is passed over.

        Args:
            completions: Of one or several cycles.
            meta: Values to :meth:`set_meta` in the same transaction.

        Raises:
            ArchloopError: A different completion has the same cycle and index, or the cycle is
                committed.
        """
        with self._write() as db:
            known = {
                (c.cycle, c.index): c
                for cycle in {c.cycle for c in completions}
                for c in _completions(db, cycle)
            }
            new: list[dict[str, Any]] = []
            for completion in completions:
                key = (completion.cycle, completion.index)
                if key not in known:
                    known[key] = completion
                    new.append(asdict(completion))
                elif known[key] != completion:
                    where = candidate_id(completion.cycle, completion.index)
                    raise ArchloopError(f"{self._where}: {where} is there and is not the same")
            for cycle in {row["cycle"] for row in new}:
                self._refuse_committed(db, cycle)
            if new:
                db.execute(COMPLETIONS.insert(), new)
            for name, value in (meta or {}).items():
                _set_meta(db, name, value)

    def completions(self, cycle: int) -> list[Completion]:
        """The completions of a cycle, in index order."""
        with self._read() as db:
            return _completions(db, cycle)

    def pending(self, cycle: int) -> list[Completion]:
        """The completions of a cycle without a verdict, in index order."""
        judged = sa.exists().where(
            CANDIDATES.c.cycle == COMPLETIONS.c.cycle,
            CANDIDATES.c.index == COMPLETIONS.c.index,
        )
        with self._read() as db:
            return _completions(db, cycle, ~judged)

    def add_verdict(
        self,
        cycle: int,
        index: int,
        *,
        verdict: Verdict,
        code: str | None,
        code_sha256: str | None,
        isolation: str | None,
        protocol: str | None,
        training: str | None,
    ) -> None:
        """Keep what was found out about one completion, once and for all.

        Raises:
            ArchloopError: There is no such completion, it has a verdict, or its cycle is committed.
        """
        row = asdict(verdict) | {
            "cycle": cycle,
            "index": index,
            "outcome": verdict.outcome.value,
            "code": code,
            "code_sha256": code_sha256,
            "isolation": isolation,
            "protocol": protocol,
            "training": training,
            "flags": list(verdict.flags),
        }
        del row["output"], row["graph"], row["macs"]
        row["graph_hash"] = verdict.graph and verdict.graph.hash
        row["graph_shingles"] = verdict.graph and verdict.graph.shingles
        with self._write() as db:
            self._refuse_committed(db, cycle)
            try:
                db.execute(CANDIDATES.insert().values(row))
            except IntegrityError:
                where = f"{self._where}: {candidate_id(cycle, index)}"
                raise ArchloopError(f"{where} has a verdict or was never generated") from None

    def candidates(self, cycle: int | None = None) -> list[Candidate]:
        """The completions with a verdict, of one cycle or of all, in (cycle, index) order."""
        with self._read() as db:
            return _candidates(db, () if cycle is None else (CANDIDATES.c.cycle == cycle,))

    def accepted(self) -> list[Candidate]:
        """All accepted candidates, in (cycle, index) order."""
        with self._read() as db:
            return _candidates(db, (CANDIDATES.c.outcome == Outcome.ACCEPTED.value,))

    def add_span(self, span: Span) -> None:
        """Keep when a piece of work was done."""
        with self._write() as db:
            db.execute(SPANS.insert().values(asdict(span)))

    def spans(self) -> list[Span]:
        """All spans in the order they were kept; none of a run from before there were any."""
        with self._read() as db:
            if not sa.inspect(db).has_table(SPANS.name):
                return []
            rows = db.execute(SPANS.select().order_by(SPANS.c.id)).mappings()
            return [Span(**{k: v for k, v in row.items() if k != "id"}) for row in rows]

    def cycles(self) -> list[CycleStats]:
        """The statistics of the committed cycles, in order."""
        with self._read() as db:
            # By the fields' names: a column has the one that the first runs were stored with.
            columns = [column.label(column.key) for column in CYCLES.c]
            rows = _numbers(CYCLES, db.execute(sa.select(*columns).order_by(CYCLES.c.cycle)))
            return [CycleStats(**{**row, "accuracies": tuple(row["accuracies"])}) for row in rows]

    def commit_cycle(self, stats: CycleStats, selected: Sequence[Candidate]) -> None:
        """End a cycle in one transaction: final outcomes, novelty and statistics.

        Args:
            stats: The counts, which must be those of the rows.
            selected: The valid candidates with their final outcomes and similarities.

        Raises:
            ArchloopError: The cycle is committed, a selected candidate is not one of its valid
                ones, or the statistics differ from the rows. Nothing is written then.
        """
        with self._write() as db:
            self._refuse_committed(db, stats.cycle)
            for candidate in selected:
                row = asdict(candidate)
                done = db.execute(
                    CANDIDATES.update()
                    .where(
                        CANDIDATES.c.cycle == stats.cycle,
                        CANDIDATES.c.cycle == candidate.cycle,
                        CANDIDATES.c.index == candidate.index,
                        CANDIDATES.c.outcome == Outcome.VALID.value,
                    )
                    .values(
                        {key: row[key] for key in _SELECTION_FIELDS}
                        | {"outcome": candidate.outcome.value}
                    )
                )
                if done.rowcount != 1:
                    raise ArchloopError(
                        f"{self._where}: {candidate.id} is not valid, or not of cycle {stats.cycle}"
                    )
            self._compare(db, stats)
            row = asdict(stats)
            del row["threshold"], row["temperature"], row["decided"]
            db.execute(CYCLES.insert().values(row))

    def _refuse_committed(self, db: Connection, cycle: int) -> None:
        if db.scalar(sa.select(CYCLES.c.cycle).where(CYCLES.c.cycle == cycle)) is not None:
            raise ArchloopError(f"{self._where}: cycle {cycle} is committed and does not change")

    def _compare(self, db: Connection, stats: CycleStats) -> None:
        """Refuse statistics that say something else than the rows."""
        rows = Counter(
            {
                Outcome(outcome): count
                for outcome, count in db.execute(
                    sa.select(CANDIDATES.c.outcome, sa.func.count())
                    .where(CANDIDATES.c.cycle == stats.cycle)
                    .group_by(CANDIDATES.c.outcome)
                )
            }
        )
        generated = db.scalar(sa.select(sa.func.count()).where(COMPLETIONS.c.cycle == stats.cycle))
        pairs = {
            "completions": (stats.n_gen, generated),
            "candidates": (stats.n_gen, rows.total()),
            "valid": (stats.n_valid, sum(n for o, n in rows.items() if o.is_valid)),
            "accuracies": (len(stats.accuracies), stats.n_valid),
            "accepted": (stats.n_accepted, rows[Outcome.ACCEPTED]),
            "outcomes": (
                {key: n for key, n in sorted(stats.outcomes.items()) if n},
                {outcome.value: n for outcome, n in sorted(rows.items())},
            ),
        }
        for what, (said, found) in pairs.items():
            if said != found:
                where = f"{self._where}: cycle {stats.cycle}"
                raise ArchloopError(f"{where}: statistics say {said} {what}, the rows {found}")


def _get_meta(db: Connection, key: str, default: Any = None) -> Any:
    row = db.execute(sa.select(META.c.value).where(META.c.key == key)).first()
    return default if row is None else row.value


def _set_meta(db: Connection, key: str, value: Any) -> None:
    db.execute(META.delete().where(META.c.key == key))
    db.execute(META.insert().values(key=key, value=value))


def _completions(db: Connection, cycle: int, *where: sa.ColumnElement[bool]) -> list[Completion]:
    query = COMPLETIONS.select().where(COMPLETIONS.c.cycle == cycle, *where)
    rows = _numbers(COMPLETIONS, db.execute(query.order_by(COMPLETIONS.c.index)))
    return [Completion(**row) for row in rows]


def _candidates(db: Connection, where: Sequence[sa.ColumnElement[bool]]) -> list[Candidate]:
    query = CANDIDATES.select().where(*where)
    ordered = query.order_by(CANDIDATES.c.cycle, CANDIDATES.c.index)
    rows = _numbers(CANDIDATES, db.execute(ordered))
    return [_candidate(dict(row)) for row in rows]


def _numbers(table: sa.Table, rows: sa.CursorResult[Any]) -> Iterator[sa.RowMapping]:
    """The rows, which SQLite lets hold text where a number belongs.

    Raises:
        ValueError: One does.
    """
    places = [i for i, c in enumerate(table.c) if isinstance(c.type, sa.Integer | sa.Double)]
    numbers = operator.itemgetter(*places)
    for row in rows:
        if not {str, bytes}.isdisjoint(map(type, numbers(row))):
            raise ValueError(f"text in place of a number: {row!r:.200}")
        yield row._mapping  # noqa: SLF001 - the public name of a row as a mapping


def _candidate(row: dict[str, Any]) -> Candidate:
    hash, shingles = row.pop("graph_hash"), row.pop("graph_shingles")
    row["outcome"], row["flags"] = Outcome(row["outcome"]), tuple(row["flags"])
    return Candidate(
        id=candidate_id(row["cycle"], row["index"]),
        graph=None if hash is None else GraphSketch(hash, shingles),
        **row,
    )
