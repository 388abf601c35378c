"""A run judged again under another novelty or selection, from what its store holds.

No LLM and no training are needed: sources, accuracies and graphs are stored. The answer is what
another rule would have made of *these* candidates; not which ones the LLM would have written, had
it been trained on others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from archloop.config import RunConfig
from archloop.corpus.pairs import read_pairs, seeds_to_judge
from archloop.errors import UsageError
from archloop.evaluation.graphs import graphs_of
from archloop.novelty import NoveltyJudge
from archloop.progress import Silent
from archloop.search.selection import ValidCandidate, next_count, select, threshold_of
from archloop.store.run_dir import TASK_SIZE, Run, RunDir
from archloop.types import Candidate


def rejudge(root: Path, config: RunConfig) -> Iterator[tuple[Candidate, Candidate]]:
    """Every valid candidate of the committed cycles, as it was judged and as it would be.

    Args:
        root: The run directory.
        config: Its ``novelty``, ``selection`` and ``sandbox`` sections count.

    Raises:
        UsageError: The folder is no run, or no cycle of it is committed.
    """
    with Run.open(root) as run:
        cycles = [stats.cycle for stats in run.cycles()]
        candidates = run.store.candidates()
        size = run.store.get_meta(TASK_SIZE)
    if not cycles:
        raise UsageError(f"{root}: no cycle is committed, so there is nothing to judge again")
    seeds = seeds_to_judge(read_pairs(RunDir(root).corpus(1)))
    graphs = graphs_of(
        list(seeds.values()),
        shape=tuple(size["shape"]),
        classes=size["classes"],
        config=config.sandbox,
        observer=Silent(),
    )
    judge = NoveltyJudge(config.novelty)
    for (id, code), graph in zip(seeds.items(), graphs, strict=True):
        judge.add_known(id, code, graph)
    rejected = 0
    accuracies: list[list[float]] = []
    for cycle in cycles:
        judge.start_cycle()
        valid = {c.id: c for c in candidates if c.cycle == cycle and c.outcome.is_valid}
        rows = [ValidCandidate.of(c) for c in valid.values()]
        accuracies.append([row.first_epoch_accuracy for row in rows])
        decisions = select(
            rows,
            judge,
            threshold_of(config.selection, accuracies),
            max_train_seconds=config.selection.max_train_seconds,
            reject_near_duplicates=config.novelty.enabled,
            rejection_count=rejected,
        )
        for decision in decisions:
            before = valid[decision.id]
            after = replace(
                before,
                outcome=decision.outcome,
                rejection_count=decision.rejection_count,
                **decision.scores.for_row(),
            )
            yield before, after
            rejected = next_count(decision.rejection_count, decision.outcome)
