"""A run as its report needs it: read once, then closed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archloop.config import RunConfig
from archloop.corpus.pairs import distinct_codes, read_pairs
from archloop.errors import UsageError
from archloop.evaluation.graphs import traced_before
from archloop.novelty.structure import structure_class
from archloop.report import structures
from archloop.report.diversity import Diversity, Network, Seeds, of_cycles
from archloop.report.status import spending_of
from archloop.report.structures import Structures
from archloop.report.summary import RunSummary, Spending
from archloop.store.rows import candidate_id
from archloop.store.run_dir import SESSIONS, TASK_SIZE, Run, RunDir, State
from archloop.text import encodable
from archloop.types import Candidate, CycleStats, Decision, GraphSketch, Outcome, Span


@dataclass(frozen=True)
class ReportedRun:
    """Everything the report of one run shows."""

    label: str
    state: State
    config: RunConfig
    configuration: str
    """Its digest."""
    task: str
    """The task in use."""
    pinned: dict[str, str]
    """The digests that are fixed for the run, and the task."""
    sessions: tuple[dict[str, Any], ...]
    """What :func:`archloop.machine.session.session` recorded, once for each start of the run."""
    summary: RunSummary
    """Of the committed cycles."""
    candidates: tuple[Candidate, ...]
    """Of the cycle under way too."""
    decisions: tuple[Decision, ...]
    """Of the committed cycles."""
    spans: tuple[Span, ...]
    """When the work of each cycle was done."""
    spending: Spending | None
    """What was used of the LLM's server; ``None``: it is local."""
    diversity: tuple[Diversity, ...]
    """Of what each committed cycle accepted, and of all of it; none where the seeds are missing."""
    structures: tuple[Structures, ...]
    """Of the valid networks of each committed cycle, and of all of them; none where no structure is
    known, as of runs before there were profiles."""


def read_runs(runs: Sequence[Path]) -> list[ReportedRun]:
    """Read the given run directories.

    Raises:
        UsageError: One of them is no run, or named twice.
    """
    folders = [path.resolve() for path in runs]
    for path, folder in zip(runs, folders, strict=True):
        if folders.count(folder) > 1:
            raise UsageError(f"{path}: named more than once; name each run once")
    return [_read(label, path) for label, path in zip(_labels(runs), runs, strict=True)]


def _read(label: str, path: Path) -> ReportedRun:
    with Run.open(path) as run:
        # In this order, as a cycle may be committed meanwhile: its candidates are left over then.
        cycles, candidates = run.cycles(), run.store.candidates()
        seeds = _seeds(run, path)
        return ReportedRun(
            label=label,
            state=run.state(),
            config=run.config,
            configuration=run.paths.configuration(),
            task=run.task(),
            pinned=run.pinned(),
            sessions=tuple(run.store.get_meta(SESSIONS, [])),
            summary=RunSummary.of(cycles),
            candidates=tuple(candidates),
            decisions=tuple(run.store.decisions()),
            spans=tuple(run.store.spans()),
            spending=spending_of(run),
            diversity=tuple(_diversity(run, seeds, cycles, candidates)),
            structures=tuple(_structures(run, seeds, cycles, candidates)),
        )


@dataclass(frozen=True)
class _Seeds:
    """The seed networks of a run."""

    codes: list[str]
    graphs: list[GraphSketch | None] | None
    """``None``: they were not traced on this machine."""


def _seeds(run: Run, path: Path) -> _Seeds | None:
    """The seed networks; ``None`` where the first corpus is missing."""
    corpus, size = RunDir(path).corpus(1), run.store.get_meta(TASK_SIZE)
    if not corpus.is_file():
        return None
    codes = [code for _, code in distinct_codes(read_pairs(corpus))]
    graphs = (
        traced_before(codes, shape=tuple(size["shape"]), classes=size["classes"]) if size else None
    )
    return _Seeds(codes, graphs)


def _structures(
    run: Run,
    seeds: _Seeds | None,
    cycles: Sequence[CycleStats],
    candidates: Sequence[Candidate],
) -> list[Structures]:
    valid = [c for c in candidates if c.outcome.is_valid]
    if not any(structure_class(c.measures) for c in valid):
        return []
    asked = {
        candidate_id(r.cycle, r.index): (r.origin.structure, r.origin.max_params)
        for stats in cycles
        for r in run.store.requests(stats.cycle)
        if r.origin.structure is not None
    }
    by_cycle = [[c for c in valid if c.cycle == stats.cycle] for stats in cycles]
    return structures.of_cycles(by_cycle, None if seeds is None else seeds.graphs, asked)


def _diversity(
    run: Run,
    known: _Seeds | None,
    cycles: Sequence[CycleStats],
    candidates: Sequence[Candidate],
) -> list[Diversity]:
    if not cycles or known is None:
        return []
    seeds = Seeds(
        map(Network, known.codes, known.graphs or [None] * len(known.codes)),
        run.config.novelty,
        traced=known.graphs is not None,
    )
    accepted = [c for c in candidates if c.outcome is Outcome.ACCEPTED]
    return of_cycles(
        [[Network(c.code or "", c.graph) for c in accepted if c.cycle == s.cycle] for s in cycles],
        seeds,
    )


def _labels(runs: Sequence[Path]) -> list[str]:
    """Folder names where they tell the runs apart, else the paths as given."""
    names = [path.resolve().name for path in runs]
    labels = names if len(set(names)) == len(names) else [str(path) for path in runs]
    return [encodable(label) for label in labels]
