"""The report's figures as CSV: fractions, seconds, every k and n; not measured is an empty cell.

``_low`` and ``_high`` are the ends of 95 % intervals, Wilson for rates and Student-t for means, the
latter cut to 0..1 as everywhere else.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from archloop.novelty.structure import cell_order, structure_class
from archloop.report.reported import ReportedRun
from archloop.report.structures import effective_number
from archloop.report.summary import CycleSummary, Interval, Mean, Proportion, Spending
from archloop.types import PROFILE, Outcome

_FORMULA = ("=", "+", "-", "@", "\t")
"""What a formula begins with, or what is skipped before one."""


def csv_files(runs: Sequence[ReportedRun]) -> dict[str, str]:
    """Name and text of each CSV file; the rows of all runs are in the same files."""
    return {
        "cycles.csv": _csv(_cycle_rows(runs)),
        "totals.csv": _csv(_total_rows(runs)),
        "outcomes.csv": _csv(_outcome_rows(runs)),
        "diversity.csv": _csv(_diversity_rows(runs)),
        "structures.csv": _csv(_structure_rows(runs)),
        "classes.csv": _csv(_class_rows(runs)),
        "niches.csv": _csv(_niche_rows(runs)),
        "motifs.csv": _csv(_motif_rows(runs)),
        "candidates.csv": _csv(_candidate_rows(runs)),
    }


def _cycle_rows(runs: Sequence[ReportedRun]) -> Iterable[dict[str, Any]]:
    for run in runs:
        floor = run.config.selection.min_accuracy
        for cycle in run.summary.cycles:
            yield {"run": run.label, **_cycle_row(cycle, floor)}


def _cycle_row(cycle: CycleSummary, floor: float) -> dict[str, Any]:
    stats = cycle.stats
    return {
        "cycle": stats.cycle,
        "temperature": stats.temperature,
        **_proportion_columns("valid", cycle.valid),
        "best_accuracy": cycle.best,
        **_mean_columns("accuracy", cycle.mean),
        "median_accuracy": cycle.median,
        **_proportion_columns("at_floor", cycle.at_floor),
        "min_accuracy": floor,
        "threshold": stats.threshold,
        **_proportion_columns("near_duplicate", cycle.near_duplicate),
        "n_accepted": stats.n_accepted,
        "corpus_size": stats.corpus_size,
        "n_tokens": stats.n_tokens,
        "wall_seconds": stats.wall_seconds,
        "adapter": stats.adapter,
        "corpus_sha256": stats.corpus_sha256,
    }


def _total_rows(runs: Sequence[ReportedRun]) -> Iterable[dict[str, Any]]:
    for run in runs:
        whole, config = run.summary, run.config
        yield {
            "run": run.label,
            "llm": config.llm.model,
            "task": run.task,
            "seed": config.seed,
            "configuration": run.configuration,
            **_mean_columns("valid_rate", whole.valid_rate),
            **_proportion_columns("valid", whole.valid),
            "best_accuracy": whole.best,
            **_mean_columns("accuracy", whole.accuracy),
            **_proportion_columns("at_floor", whole.at_floor),
            "min_accuracy": config.selection.min_accuracy,
            **_proportion_columns("near_duplicate", whole.near_duplicate),
            "n_accepted": whole.n_accepted,
            "n_tokens": whole.n_tokens,
            "wall_seconds": whole.wall_seconds,
            **_spending_columns(run.spending),
        }


def _spending_columns(spending: Spending | None) -> dict[str, Any]:
    """Empty cells where the LLM is local."""
    return {
        "server_prompt_tokens": spending and spending.spent.prompt_tokens,
        "server_completion_tokens": spending and spending.spent.completion_tokens,
        "cost": spending and spending.cost,
        "cost_per_accepted": spending and spending.cost_per_accepted,
    }


def _outcome_rows(runs: Sequence[ReportedRun]) -> Iterable[dict[str, Any]]:
    for run in runs:
        for cycle in run.summary.cycles:
            counts = {o.value: cycle.stats.outcomes.get(o.value, 0) for o in Outcome}
            yield {"run": run.label, "cycle": cycle.stats.cycle, **counts}


def _diversity_rows(runs: Sequence[ReportedRun]) -> Iterable[dict[str, Any]]:
    for run in runs:
        cycles = [*(c.stats.cycle for c in run.summary.cycles), "all"]
        for cycle, found in zip(cycles, run.diversity, strict=False):
            yield {"run": run.label, "cycle": cycle, **asdict(found)}


def _structure_rows(runs: Sequence[ReportedRun]) -> Iterable[dict[str, Any]]:
    for run in runs:
        cycles = [*(c.stats.cycle for c in run.summary.cycles), "all"]
        for cycle, found in zip(cycles, run.structures, strict=False):
            asked = found.asked
            yield {
                "run": run.label,
                "cycle": cycle,
                "valid_n": sum(found.valid.values()),
                "valid_classes": len(found.valid),
                "valid_effective": effective_number(found.valid),
                "accepted_n": sum(found.accepted.values()),
                "accepted_structured": found.structured,
                "accepted_classes": len(found.accepted),
                "accepted_effective": effective_number(found.accepted),
                "niches": found.niches,
                "new_motifs": None if found.new_motifs is None else len(found.new_motifs),
                **{
                    f"asked_{name}": None if asked is None else getattr(asked, name)
                    for name in ("n", "exact", "at_least", "within_budget")
                },
            }


def _class_rows(runs: Sequence[ReportedRun]) -> Iterable[dict[str, Any]]:
    """Networks of each structure class, as a long table."""
    for run in runs:
        cycles = [*(c.stats.cycle for c in run.summary.cycles), "all"]
        for cycle, found in zip(cycles, run.structures, strict=False):
            for name in sorted(found.valid, key=lambda name: (-found.valid[name], name)):
                yield {
                    "run": run.label,
                    "cycle": cycle,
                    "class": name,
                    "valid": found.valid[name],
                    "accepted": found.accepted[name],
                }


def _niche_rows(runs: Sequence[ReportedRun]) -> Iterable[dict[str, Any]]:
    """Networks of each class in each cell of multiply-accumulates, as a long table."""
    for run in runs:
        cycles = [*(c.stats.cycle for c in run.summary.cycles), "all"]
        for cycle, found in zip(cycles, run.structures, strict=False):
            for name, macs in sorted(
                found.grid, key=lambda place: (place[0], cell_order(place[1]))
            ):
                cell = asdict(found.grid[name, macs])
                yield {"run": run.label, "cycle": cycle, "class": name, "macs": macs, **cell}


def _motif_rows(runs: Sequence[ReportedRun]) -> Iterable[dict[str, Any]]:
    """Operator motifs that no seed network has, with the cycle that has them first."""
    for run in runs:
        for cycle, found in zip(run.summary.cycles, run.structures, strict=False):
            for motif in found.new_motifs or ():
                whole = run.structures[-1].new_motifs or {}
                yield {
                    "run": run.label,
                    "cycle": cycle.stats.cycle,
                    "motif": motif,
                    "accepted": whole[motif],
                }


def _candidate_rows(runs: Sequence[ReportedRun]) -> Iterable[dict[str, Any]]:
    for run in runs:
        for candidate in run.candidates:
            row = candidate.to_json()
            del row["measures"]
            yield {"run": run.label, **row, **_measure_columns(candidate.measures)}


def _measure_columns(measures: Mapping[str, float]) -> dict[str, Any]:
    """The further measures that every report has a column for, counts without a decimal point."""
    counts = {name: measures.get(name) for name in ("macs", *PROFILE)}
    share = counts.pop("linear_share")
    whole = {name: None if value is None else int(value) for name, value in counts.items()}
    return whole | {"linear_share": share, "structure_class": structure_class(measures)}


def _proportion_columns(name: str, value: Proportion) -> dict[str, Any]:
    low, high = _ends(value.interval)
    columns = {"k": value.k, "n": value.n, "rate": value.rate, "low": low, "high": high}
    return {f"{name}_{key}": number for key, number in columns.items()}


def _mean_columns(name: str, value: Mean) -> dict[str, Any]:
    low, high = _ends(value.interval)
    columns = {"n": value.n, "mean": value.value, "low": low, "high": high}
    return {f"{name}_{key}": number for key, number in columns.items()}


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else interval


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    """Comma-separated text with a heading; ``None`` is an empty cell."""
    text = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(text, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({name: _inert(value) for name, value in row.items()})
    return text.getvalue()


def _inert(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets ``'`` before it: a candidate chose it."""
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # which csv does not quote, and readers take for a row's end
    return f"'{text}" if text.startswith(_FORMULA) else text
