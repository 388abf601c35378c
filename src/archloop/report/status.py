"""The state of a run on one screen, or as one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from archloop.config import RunConfig
from archloop.llm.spending import Spent
from archloop.report.formats import (
    NOTHING,
    bracket,
    clock,
    count,
    duration,
    floor,
    money,
    percent,
)
from archloop.report.live import run_clock, run_facts, stage_counts, stage_facts, stage_title
from archloop.report.summary import CycleSummary, Mean, Proportion, RunSummary, Spending
from archloop.store.run_dir import SPENT, Run
from archloop.types import CycleStats, Outcome

_ALL = "all"
"""Stands for the number of a cycle in the row of all."""
_MOST_OUTCOMES = 5
_FRESH_SECONDS = 10.0
"""Age from which a snapshot is said to be old."""


def format_cycle_table(
    stats: Sequence[CycleStats], config: RunConfig, last: int | None = None
) -> Table:
    """The committed cycles as a table for the terminal, with the whole run in the last row.

    With ``last``, of the cycles only the last so many have rows.

    Fits 80 columns. Brackets hold Wilson 95 % intervals, after the sign is the half width of a
    Student-t 95 % interval, or brackets hold one that ends at 0 or 100; time is h:mm:ss.
    """
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    for heading in _headings(config):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = _rows(stats)
    hidden = 0 if last is None else max(0, len(stats) - last)
    for row in rows[hidden:]:
        table.add_row(*row, style="bold" if row[0] == _ALL else None)
    return table


def format_cycles(stats: Sequence[CycleStats], config: RunConfig) -> str:
    """The figures of :func:`format_cycle_table` as a line for each cycle, to be wrapped."""
    headings = [heading.replace("\n", " ") for heading in _headings(config)]
    return "\n".join(
        ", ".join(f"{name} {cell}" for name, cell in zip(headings, row, strict=True))
        for row in _rows(stats)
    )


def _headings(config: RunConfig) -> tuple[str, ...]:
    return (
        "cycle",
        "valid",
        "% [95 %]",
        "best\n%",
        "mean\n%",
        floor(config.selection.min_accuracy),
        "near\ndup.",
        "accepted",
        "corpus",
        "time",
    )


def _rows(stats: Sequence[CycleStats]) -> list[list[str]]:
    """The cells of each cycle, and of more than one together."""
    whole = RunSummary.of(stats)
    rows = [[str(cycle.stats.cycle), *_cells(cycle)] for cycle in whole.cycles]
    return rows if len(rows) < 2 else [*rows, [_ALL, *_total_cells(whole)]]


def status_json(run: Run) -> dict[str, Any]:
    """The one object of ``archloop status RUN --json``; fractions in 0..1, seconds.

    ``cycles`` holds the committed cycles, ``current`` what there is of the one under way (``None``
    where that is nothing), ``progress`` the last snapshot of the stage under way (``None`` when the
    run is finished; ``age`` is in seconds), ``interval`` two ends within 0..1,
    ``spent`` what was used of the LLM's server (``None``: it is local).
    """
    config = run.config
    stats = run.cycles()
    whole = RunSummary.of(stats)
    return {
        "run": str(run.paths.root),
        "state": run.state(),
        "config": run.paths.configuration(),
        "llm": config.llm.model,
        "task": run.task(),
        "seed": config.seed,
        "min_accuracy": config.selection.min_accuracy,
        "planned_cycles": config.loop.cycles,
        "current": _current(run, stats),
        "progress": _progress_json(run),
        "cycles": [cycle.to_json() for cycle in whole.cycles],
        "totals": whole.to_json(),
        "spent": None if (found := spending_of(run)) is None else found.to_json(),
    }


def spending_of(run: Run) -> Spending | None:
    """What a run has used of its LLM's server; ``None``: the LLM is local."""
    found = run.store.get_meta(SPENT)
    if found is None:
        return None
    priced = run.config.openai.has_prices
    return Spending(Spent.from_json(found), run.store.n_accepted(), priced)


def spending_line(spent: Spent, *, priced: bool, n_accepted: int | None = None) -> str:
    """Tokens and cost in words, with those of an accepted network if their number is given."""
    found = Spending(spent, n_accepted or 0, priced)
    parts = [
        f"{count(spent.prompt_tokens)} prompt and {count(spent.completion_tokens)} sampled tokens "
        f"in {count(spent.answers)} answers"
    ]
    if spent.unanswered:
        parts.append(f"{count(spent.unanswered)} unanswered requests charged as the longest answer")
    if found.cost is not None:
        parts.append(f"cost {money(found.cost)}")
    if found.tokens_per_accepted is not None:
        each = f"{count(round(found.tokens_per_accepted))} tokens"
        if found.cost_per_accepted is not None:
            each += f" and {money(found.cost_per_accepted)}"
        parts.append(f"{each} for each of {count(n_accepted)} accepted networks")
    return "LLM server: " + ", ".join(parts)


def _current(run: Run, stats: Sequence[CycleStats]) -> dict[str, Any] | None:
    cycle = stats[-1].cycle + 1 if stats else 1
    n_gen = run.store.n_completions(cycle)
    if not n_gen:
        return None
    judged = run.store.outcome_counts(cycle)
    return {
        "cycle": cycle,
        "n_gen": n_gen,
        "n_judged": judged.total(),
        "n_valid": sum(n for outcome, n in judged.items() if outcome.is_valid),
        "outcomes": {outcome.value: judged[outcome] for outcome in Outcome if judged[outcome]},
    }


def current_line(run: Run) -> str | None:
    """What the store has of the cycle that is not committed; ``None``: nothing."""
    found = _current(run, run.cycles())
    if found is None:
        return None
    return (
        f"cycle {found['cycle']}, not committed: {found['n_gen']} completions, "
        f"{found['n_judged']} judged, {found['n_valid']} valid"
    )


def progress_lines(run: Run) -> list[str]:
    """The stage under way and how far it is, of a run that may be another process's.

    Of a run that no process works on: where it stopped. Empty where nothing is known.
    """
    found = run.progress()
    if found is None or (state := run.state()) == "finished":
        return []
    progress, age = found
    counts = stage_counts(progress)
    facts = [counts] if counts else []
    if state != "running":
        where = ", ".join([stage_title(progress), *facts])
        return [f"not running; it stopped {duration(age)} ago in {where}"]
    facts += stage_facts(progress, age)
    heard = f" ({duration(age)} ago)" if age > _FRESH_SECONDS else ""
    lines = [f"now: {': '.join(p for p in (stage_title(progress), ', '.join(facts)) if p)}{heard}"]
    if progress.run is not None and progress.run.cycle:
        whole = [f"{run_clock(progress.run, age)} since the start", *run_facts(progress, age)]
        lines.append(f"run: {', '.join(whole)}")
    return lines


def _progress_json(run: Run) -> dict[str, Any] | None:
    found = run.progress()
    if found is None or run.state() == "finished":
        return None
    progress, age = found
    whole = asdict(progress)
    if whole["run"] is not None:
        del whole["run"]["finished"]  # they are in ``cycles``
    return {"age": round(age, 1), **whole}


def outcome_counts(run: Run) -> str:
    """The most frequent outcomes in words, ``3 no_code, 1 timeout``."""
    found = run.store.outcome_counts().most_common(_MOST_OUTCOMES)
    return ", ".join(f"{n} {outcome.value}" for outcome, n in found)


def _cells(cycle: CycleSummary) -> list[str]:
    stats = cycle.stats
    return [
        *_shared_cells(cycle.valid, cycle.best, cycle.mean, cycle.at_floor),
        str(stats.n_near_duplicate),
        str(stats.n_accepted),
        count(stats.corpus_size),
        clock(stats.wall_seconds),
    ]


def _total_cells(whole: RunSummary) -> list[str]:
    last = whole.cycles[-1].stats
    return [
        *_shared_cells(whole.valid, whole.best, whole.accuracy, whole.at_floor),
        str(whole.near_duplicate.k),
        str(whole.n_accepted),
        count(last.corpus_size),
        clock(whole.wall_seconds),
    ]


def _shared_cells(
    valid: Proportion, best: float | None, mean: Mean, above: Proportion
) -> list[str]:
    return [
        f"{valid.k}/{valid.n}",
        f"{percent(valid.rate, 0)}{bracket(valid.interval, 0)}",
        percent(best, 1),
        _plus_minus(mean),
        f"{above.k}/{above.n}",
    ]


def _plus_minus(mean: Mean) -> str:
    if mean.value is None:
        return NOTHING
    if mean.interval is None:
        return percent(mean.value, 1)
    low, high = mean.interval
    if low <= 0.0 or high >= 1.0:  # cut there, so that the halves differ
        return f"{percent(mean.value, 1)}{bracket(mean.interval, 0)}"
    return f"{percent(mean.value, 1)} ±{percent(high - mean.value, 1)}"
