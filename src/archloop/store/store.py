"""The record of a run in one database, ``run.db``: what was asked for, answered, measured, decided.

Guarantees: what a method wrote before it returned is there after the process was killed or the
power failed; a method's rows appear together or not at all; other processes may read while one
writes. A row is written once and never taken back, and a committed cycle does not change. Not
covered: two runs writing the same database (the run directory's lock keeps them apart).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from archloop.errors import ArchloopError, UsageError
from archloop.store import rows, schema2
from archloop.store.rows import candidate_id
from archloop.store.tables import (
    CANDIDATES,
    COMPLETIONS,
    CYCLES,
    DECISIONS,
    MEASURES,
    META,
    REQUESTS,
    SCHEMA,
    SCHEMA_KEY,
    SPANS,
    TABLES,
    database_url,
    open_engine,
)
from archloop.types import (
    Candidate,
    Completion,
    CycleStats,
    Decision,
    Outcome,
    Request,
    Span,
    Verdict,
)

_Keyed = TypeVar("_Keyed", Request, Completion)

_DAMAGED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What a row with something else in it than the store writes raises."""


class Store:
    """The database of one run; see the module's guarantees.

    Args:
        url_or_path: A database file, or an SQLAlchemy URL.
        read_only: Open an existing file and change nothing; works on a read-only disk too, and with
            a database of schema 2.

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
            found = rows.get_meta(db, SCHEMA_KEY)
            if found not in (SCHEMA, schema2.SCHEMA):
                raise UsageError(
                    f"{self._where}: written with schema {found}, this archloop writes schema "
                    f"{SCHEMA}; open it with the version of archloop that wrote it, or a later one"
                )
            if found == SCHEMA:
                return
            if not read_only:
                raise UsageError(
                    f"{self._where}: written by {schema2.written_by(db)}: the run can be read and "
                    "reported, but not continued; start a new one in another --run-dir"
                )
            copy = schema2.convert(db, self._where)
        self._engine.dispose()
        self._engine = copy

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
            rows.set_meta(db, key, value)

    def get_meta(self, key: str, default: Any = None) -> Any:
        """The JSON value under a key, or ``default``."""
        with self._read() as db:
            return rows.get_meta(db, key, default)

    def add_requests(self, requests: Sequence[Request]) -> None:
        """Add requests, all or none; one that is there already and the same is passed over.

        Raises:
            ArchloopError: A different request has the same cycle and index, or the cycle is
                committed.
        """
        with self._write() as db:
            known = [r for cycle in {r.cycle for r in requests} for r in rows.requests(db, cycle)]
            new = self._new(known, requests)
            for cycle in {request.cycle for request in new}:
                self._refuse_committed(db, cycle)
            if new:
                db.execute(REQUESTS.insert(), [rows.of_request(request) for request in new])

    def _new(self, known: Sequence[_Keyed], given: Sequence[_Keyed]) -> list[_Keyed]:
        """Those of the given that are not known."""
        new: list[_Keyed] = []
        found = {(old.cycle, old.index): old for old in known}
        for item in given:
            if (there := found.setdefault((item.cycle, item.index), item)) is item:
                new.append(item)
            elif there != item:
                where = candidate_id(item.cycle, item.index)
                what = type(item).__name__.lower()
                raise ArchloopError(f"{self._where}: {where}: another {what} is there")
        return new

    def requests(self, cycle: int) -> list[Request]:
        """The requests of a cycle, in index order."""
        with self._read() as db:
            return rows.requests(db, cycle)

    def add_completions(
        self, completions: Sequence[Completion], meta: Mapping[str, Any] | None = None
    ) -> None:
        """Add completions, all or none; one that is there already and the same is passed over.

        Args:
            completions: Of one or several cycles.
            meta: Values to :meth:`set_meta` in the same transaction.

        Raises:
            ArchloopError: A different completion has the same cycle and index, there is no request
                for one, or the cycle is committed.
        """
        with self._write() as db:
            cycles = {c.cycle for c in completions}
            known = [c for cycle in cycles for c in rows.completions(db, cycle)]
            new = self._new(known, completions)
            for cycle in {completion.cycle for completion in new}:
                self._refuse_committed(db, cycle)
            if new:
                try:
                    db.execute(COMPLETIONS.insert(), [asdict(completion) for completion in new])
                except IntegrityError:
                    ids = ", ".join(candidate_id(c.cycle, c.index) for c in new[:3])
                    raise ArchloopError(f"{self._where}: {ids}: not all were requested") from None
            for name, value in (meta or {}).items():
                rows.set_meta(db, name, value)

    def completions(self, cycle: int) -> list[Completion]:
        """The completions of a cycle, in index order."""
        with self._read() as db:
            return rows.completions(db, cycle)

    def n_completions(self, cycle: int) -> int:
        """How many completions of a cycle there are."""
        with self._read() as db:
            return rows.count(db, COMPLETIONS, COMPLETIONS.c.cycle == cycle)

    def pending(self, cycle: int) -> list[Completion]:
        """The completions of a cycle without a verdict, in index order."""
        judged = sa.exists().where(
            CANDIDATES.c.cycle == COMPLETIONS.c.cycle,
            CANDIDATES.c.index == COMPLETIONS.c.index,
        )
        with self._read() as db:
            return rows.completions(db, cycle, ~judged)

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
        key = {"cycle": cycle, "index": index}
        row = key | {
            "outcome": verdict.outcome.value,
            "error": verdict.error,
            "code": code,
            "code_sha256": code_sha256,
            "graph_hash": verdict.graph and verdict.graph.hash,
            "graph_shingles": verdict.graph and verdict.graph.shingles,
            "isolation": isolation,
            "protocol": protocol,
            "training": training,
            "flags": list(verdict.flags),
        }
        measured = [key | measure for measure in rows.of_measures(verdict)]
        with self._write() as db:
            self._refuse_committed(db, cycle)
            try:
                db.execute(CANDIDATES.insert().values(row))
            except IntegrityError:
                where = f"{self._where}: {candidate_id(cycle, index)}"
                raise ArchloopError(f"{where} has a verdict or was never generated") from None
            if measured:
                db.execute(MEASURES.insert(), measured)

    def add_measure(self, cycle: int, index: int, name: str, value: float) -> None:
        """Keep one more measure of a candidate; the same one again changes nothing.

        Raises:
            ArchloopError: Its cycle is committed, there is no such candidate, or it has another
            value.
        """
        key = {"cycle": cycle, "index": index, "name": name}
        columns = MEASURES.c
        where = (columns.cycle == cycle) & (columns.index == index) & (columns.name == name)
        with self._write() as db:
            self._refuse_committed(db, cycle)
            known = db.scalar(sa.select(columns.value).where(where))
            if known is not None and known != value:
                who = f"{self._where}: {candidate_id(cycle, index)}"
                raise ArchloopError(f"{who} has another {name}: {known!r}, not {value!r}")
            if known is None:
                try:
                    db.execute(MEASURES.insert().values({**key, "value": value}))
                except IntegrityError:
                    who = f"{self._where}: {candidate_id(cycle, index)}"
                    raise ArchloopError(f"{who} has no verdict") from None

    def candidates(self, cycle: int | None = None) -> list[Candidate]:
        """The completions with a verdict, of one cycle or of all, in (cycle, index) order."""
        with self._read() as db:
            return rows.candidates(db, () if cycle is None else (CANDIDATES.c.cycle == cycle,))

    def accepted(self) -> list[Candidate]:
        """All accepted candidates, in (cycle, index) order."""
        with self._read() as db:
            return rows.candidates(db, (DECISIONS.c.outcome == Outcome.ACCEPTED.value,))

    def n_accepted(self) -> int:
        """How many candidates are accepted."""
        with self._read() as db:
            return rows.count(db, DECISIONS, DECISIONS.c.outcome == Outcome.ACCEPTED.value)

    def outcome_counts(self, cycle: int | None = None) -> Counter[Outcome]:
        """How many candidates of one cycle, or of all, have each outcome."""
        with self._read() as db:
            return rows.outcomes(db, cycle)

    def decisions(self, cycle: int | None = None) -> list[Decision]:
        """What was decided in one cycle, or in all, in (cycle, index) order."""
        with self._read() as db:
            return rows.decisions(db, cycle)

    def add_span(self, span: Span) -> None:
        """Keep when a piece of work was done."""
        with self._write() as db:
            db.execute(SPANS.insert().values(asdict(span)))

    def spans(self) -> list[Span]:
        """All spans in the order they were kept."""
        with self._read() as db:
            found = db.execute(SPANS.select().order_by(SPANS.c.id)).mappings()
            return [Span(**{k: v for k, v in row.items() if k != "id"}) for row in found]

    def cycles(self) -> list[CycleStats]:
        """The statistics of the committed cycles, in order."""
        with self._read() as db:
            return rows.cycles(db)

    def commit_cycle(self, stats: CycleStats, decisions: Sequence[Decision]) -> None:
        """End a cycle in one transaction: decisions and statistics.

        Args:
            stats: The counts, which must be those of the rows.
            decisions: One for every valid candidate of the cycle, and for nothing else.

        Raises:
            ArchloopError: The cycle is committed, the decisions are not about its valid candidates,
                or the statistics differ from the rows. Nothing is written then.
        """
        with self._write() as db:
            self._refuse_committed(db, stats.cycle)
            decided = self._decided(db, stats.cycle, decisions)
            if decided:
                db.execute(DECISIONS.insert(), decided)
            self._compare(db, stats)
            db.execute(CYCLES.insert().values(asdict(stats)))

    def _decided(
        self, db: Connection, cycle: int, decisions: Sequence[Decision]
    ) -> list[dict[str, Any]]:
        """The rows of a cycle's decisions, if there is one for each of its valid candidates."""
        valid = sa.select(CANDIDATES.c.index).where(
            CANDIDATES.c.cycle == cycle, CANDIDATES.c.outcome == Outcome.VALID.value
        )
        left = {candidate_id(cycle, index): index for index in db.scalars(valid)}
        decided: list[dict[str, Any]] = []
        for decision in decisions:
            index = left.pop(decision.id, None)
            where = f"{self._where}: {decision.id}"
            if index is None:
                why = f"not valid, not of cycle {cycle}, or decided twice"
                raise ArchloopError(f"{where} is {why}")
            if decision.outcome not in rows.DECIDED:
                raise ArchloopError(f"{where}: {decision.outcome} is not a decision")
            decided.append({"cycle": cycle, "index": index} | rows.of_decision(decision))
        if left:
            raise ArchloopError(f"{self._where}: nothing is decided about {min(left)}")
        return decided

    def _refuse_committed(self, db: Connection, cycle: int) -> None:
        if db.scalar(sa.select(CYCLES.c.cycle).where(CYCLES.c.cycle == cycle)) is not None:
            raise ArchloopError(f"{self._where}: cycle {cycle} is committed and does not change")

    def _compare(self, db: Connection, stats: CycleStats) -> None:
        """Refuse statistics that say something else than the rows."""
        found = rows.outcomes(db, stats.cycle)
        generated = rows.count(db, COMPLETIONS, COMPLETIONS.c.cycle == stats.cycle)
        pairs = {
            "completions": (stats.n_gen, generated),
            "candidates": (stats.n_gen, found.total()),
            "valid": (stats.n_valid, sum(n for o, n in found.items() if o.is_valid)),
            "accuracies": (len(stats.accuracies), stats.n_valid),
            "accepted": (stats.n_accepted, found[Outcome.ACCEPTED]),
            "outcomes": (
                {key: n for key, n in sorted(stats.outcomes.items()) if n},
                {outcome.value: n for outcome, n in sorted(found.items())},
            ),
        }
        for what, (said, there) in pairs.items():
            if said != there:
                where = f"{self._where}: cycle {stats.cycle}"
                raise ArchloopError(f"{where}: statistics say {said} {what}, the rows {there}")
