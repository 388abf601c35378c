"""A run judged again under another novelty or selection, from what its store holds.

No LLM and no training are needed: sources, accuracies and graphs are stored. The answer is what
another rule would have made of *these* candidates; not which ones the LLM would have written, had
it been trained on others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from archloop.config import RunConfig
from archloop.corpus.pairs import read_pairs, seeds_to_judge
from archloop.errors import UsageError
from archloop.evaluation.graphs import graphs_of
from archloop.progress import Silent
from archloop.search.history import History, Known
from archloop.search.prompts import PromptSubject
from archloop.search.strategy import build_strategy
from archloop.store.run_dir import TASK_SIZE, Run, RunDir
from archloop.types import Candidate, ChatPair, CycleStats, Decision


@dataclass
class _Again:
    """A record in which cycles are decided again, one after the other."""

    stats: list[CycleStats]
    rows: list[Candidate]

    def cycles(self) -> list[CycleStats]:
        return self.stats

    def candidates(self, cycle: int | None = None) -> list[Candidate]:
        return [row for row in self.rows if cycle is None or row.cycle == cycle]

    def decide(self, decisions: Sequence[Decision]) -> None:
        """Put new decisions in the place of the ones before."""
        made = {decision.id: decision for decision in decisions}
        self.rows = [decided(row, made[row.id]) if row.id in made else row for row in self.rows]


def decided(candidate: Candidate, decision: Decision) -> Candidate:
    """The row of a candidate with what was decided over it."""
    return replace(
        candidate,
        outcome=decision.outcome,
        rejection_count=decision.rejection_count,
        **decision.scores.for_row(),
    )


def rejudge(root: Path, config: RunConfig) -> Iterator[tuple[Candidate, Candidate]]:
    """Every valid candidate of the committed cycles, as it was judged and as it would be.

    Args:
        root: The run directory.
        config: Its ``novelty``, ``selection``, ``search`` and ``sandbox`` sections count.

    Raises:
        UsageError: The folder is no run, or no cycle of it is committed.
    """
    with Run.open(root) as run:
        stats, candidates = run.cycles(), run.store.candidates()
        size = run.store.get_meta(TASK_SIZE)
    if not stats:
        raise UsageError(f"{root}: no cycle is committed, so there is nothing to judge again")
    seeds = seeds_to_judge(read_pairs(RunDir(root).corpus(1)))
    shape, classes = tuple(size["shape"]), size["classes"]
    graphs = graphs_of(
        list(seeds.values()),
        shape=shape,
        classes=classes,
        config=config.sandbox,
        observer=Silent(),
    )
    known = [
        Known(id, code, graph) for (id, code), graph in zip(seeds.items(), graphs, strict=True)
    ]
    record = _Again(stats, candidates)
    history = History(
        record=record,
        seed=config.seed,
        task=config.task.name,
        subject=PromptSubject(config.task.name, shape, classes),
        max_params=config.task.max_params,
        seed_networks=lambda: known,
        corpus=_no_corpus,
    )
    strategy = build_strategy(config)
    for cycle in (s.cycle for s in stats):
        before = {c.id: c for c in history.valid(cycle)}
        decisions = strategy.decide(history, cycle).decisions
        record.decide(decisions)
        for decision in decisions:
            yield before[decision.id], decided(before[decision.id], decision)


def _no_corpus(cycle: int) -> Sequence[ChatPair]:
    raise UsageError(f"cycle {cycle}: decisions made again rest on no corpus")
