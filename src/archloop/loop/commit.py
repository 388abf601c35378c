"""The end of a cycle: its statistics and decisions, in one transaction."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from archloop.loop.context import NO_ADAPTER, RunContext
from archloop.loop.corpora import corpus_of
from archloop.loop.pipeline import Evaluated
from archloop.machine.downloads import sha256_of
from archloop.search.paper import ADAPTER_REJECTED
from archloop.search.selection import CycleDecisions
from archloop.store.run_dir import RunDir
from archloop.types import Candidate, CycleStats, Outcome


def commit_cycle(
    run: RunContext, cycle: int, adapter: Path | None, evaluated: Evaluated, decided: CycleDecisions
) -> CycleStats:
    """Write the candidates' files, then commit statistics and decisions in one transaction."""
    everything = run.store.candidates(cycle)
    decisions = {decision.id: decision for decision in decided.decisions}
    outcomes = Counter(
        decisions[c.id].outcome if c.id in decisions else c.outcome for c in everything
    )
    valid = [c for c in everything if c.id in decisions]
    accuracies = tuple(a for c in valid if (a := c.first_epoch_accuracy) is not None)
    temperatures = {r.temperature for r in run.store.requests(cycle) if r.messages}
    _write_candidates(run.paths, cycle, everything)
    stats = CycleStats(
        cycle=cycle,
        n_gen=len(everything),
        n_valid=len(valid),
        n_at_floor=sum(a >= run.config.selection.min_accuracy for a in accuracies),
        n_near_duplicate=sum(d.scores.is_near_duplicate for d in decided.decisions),
        n_accepted=outcomes[Outcome.ACCEPTED],
        accuracies=accuracies,
        corpus_size=len(corpus_of(run, cycle)),
        adapter=adapter.name if adapter else NO_ADAPTER,
        corpus_sha256=sha256_of(run.paths.corpus(cycle)),
        outcomes={k.value: n for k, n in outcomes.items()},
        wall_seconds=evaluated.wall_seconds,
        n_tokens=sum(c.n_tokens for c in run.store.completions(cycle)),
        threshold=decided.threshold,
        temperature=temperatures.pop() if len(temperatures) == 1 else None,
        decided=_about_adapter(adapter) | decided.decided,
    )
    run.store.commit_cycle(stats, decided.decisions)
    return stats


def _about_adapter(adapter: Path | None) -> dict[str, Any]:
    """Why the fine-tune before the cycle was not used, if it was not; later lessons rest on it."""
    lineage = adapter / "lineage.json" if adapter else None
    if lineage is None or not lineage.is_file():
        return {}
    reason = json.loads(lineage.read_text("utf-8")).get("rejected")
    return {} if reason is None else {ADAPTER_REJECTED: reason}


def _write_candidates(paths: RunDir, cycle: int, candidates: list[Candidate]) -> None:
    paths.candidates(cycle).mkdir(parents=True, exist_ok=True)
    for candidate in candidates:
        if candidate.code is not None:
            file = paths.candidate(cycle, candidate.id)
            file.write_text(candidate.code + "\n", "utf-8", "replace")
