"""The report as a Markdown document.

Every figure comes with its k and n or its n, and every run with what it takes to make it again:
configuration digest, protocol hash, seed, machine, versions and command.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from archloop.report.formats import (
    NOTHING,
    Row,
    count,
    duration,
    floor,
    mean,
    money,
    percent,
    proportion,
    table,
)
from archloop.report.paper import TABLE_2, WHOLE_RUN
from archloop.report.reported import ReportedRun
from archloop.report.structure_tables import (
    DESIGNS,
    GRID,
    STRUCTURE,
    class_table,
    grid_table,
    structure_table,
)
from archloop.report.summary import Spending
from archloop.report.timeline import timelines
from archloop.types import Candidate


def markdown(runs: Sequence[ReportedRun]) -> str:
    """The report: a section a run, then the paper's figures."""
    blocks = ["# Report", _INTRODUCTION]
    for number, run in enumerate(runs, start=1):
        blocks += [f"## {run.label}", _header(run)]
        if not run.summary.cycles:
            blocks.append("No cycle is committed yet.")
            continue
        blocks += ["### Cycles", f"![Curves](cycles-{number}.svg)", _cycle_table(run)]
        blocks += ["### Whole run", _total_table(run)]
        blocks += ["### Outcomes", _outcome_table(run)]
        if any(d.rejected_by for d in run.decisions):
            blocks += ["### Why valid candidates were not accepted", REASONS, _reason_table(run)]
        if run.spans:
            blocks += ["### Time", TIME, f"![Timeline](timeline-{number}.svg)", _time_table(run)]
        blocks.append("### Memorisation or creativity")
        blocks += [DIVERSITY, _diversity_table(run)] if run.diversity else [NO_SEEDS]
        if any(d.traced and d.new_motifs is None for d in run.diversity):
            blocks.append(NOT_TRACED)
        if run.structures:
            blocks += ["### Structure", STRUCTURE, f"![Classes](classes-{number}.svg)"]
            blocks += [structure_table(run), class_table(run), GRID, grid_table(run)]
            blocks += [DESIGNS, f"![Designs](designs-{number}.svg)"]
    blocks += ["## The paper", _paper_table(), WHOLE_RUN]
    return "\n\n".join(blocks) + "\n"


_INTRODUCTION = (
    "Percent. Brackets hold 95 % intervals: Wilson for proportions (k/n beside them), Student-t "
    "for means, within 0 to 100. Valid: trained to the end of the epoch, of all completions "
    "sampled. Accuracies are first-epoch accuracies of the valid candidates; the share at or above "
    "the floor and the near-duplicates are of the valid candidates. Threshold: what a candidate "
    "had to reach to be accepted, the floor or above it (selection.percentile); one that trained "
    "for longer than selection.max_train_seconds, where that is set, counts as below it. Corpus: "
    "prompt-code pairs that the cycle's adapter was trained on or started from. Time: generation "
    "and evaluation, not known for a cycle that was interrupted."
)


def _header(run: ReportedRun) -> str:
    config = run.config
    protocols = sorted({c.protocol for c in run.candidates if c.protocol})
    isolation = sorted({c.isolation for c in run.candidates if c.isolation})
    rows: list[Row] = [
        ("state", f"{run.state}, {len(run.summary.cycles)} of {config.loop.cycles} cycles"),
        ("LLM", config.llm.model),
        ("revision", config.llm.revision or NOTHING),
        ("warm start", config.llm.warm_start or "none"),
        ("task", run.task),
        ("seed", config.seed),
        ("configuration", run.configuration),
        ("protocol", ", ".join(protocols) or NOTHING),
        ("prompt", run.pinned.get("prompt", NOTHING)),
        ("decoding", run.pinned.get("decoding", NOTHING)),
        ("isolation", ", ".join(isolation) or NOTHING),
        ("best candidate", _best(run.candidates)),
    ]
    return table(("", ""), [*rows, *_session_rows(run.sessions)])


def _session_rows(sessions: Sequence[dict[str, Any]]) -> list[Row]:
    """Machine, versions and command, each once however often the run was resumed."""

    def distinct(texts: Iterable[str]) -> str:
        return "; ".join(dict.fromkeys(texts)) or "not recorded"

    return [
        ("machine", distinct(_machine(s["machine"]) for s in sessions)),
        ("versions", distinct(_versions(s["versions"]) for s in sessions)),
        ("command", distinct(f"`{s['command']}`" for s in sessions)),
        ("starts", len(sessions) or "not recorded"),
    ]


def _machine(facts: dict[str, Any]) -> str:
    gpus = ", ".join(facts["gpus"]) or "no GPU"
    memory = f"{facts['memory_gib']} GiB"
    return f"{facts['processor']}, {facts['cores']} cores, {memory}, {gpus}, {facts['system']}"


def _versions(facts: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in facts.items())


def _best(candidates: Sequence[Candidate]) -> str:
    measured = [c for c in candidates if c.outcome.is_valid and c.first_epoch_accuracy is not None]
    if not measured:
        return NOTHING
    best = max(measured, key=lambda c: c.first_epoch_accuracy or 0.0)
    size = f"{count(best.n_params)} parameters"
    return f"{best.id}, {percent(best.first_epoch_accuracy)} %, {size}, {best.outcome.value}"


def _cycle_table(run: ReportedRun) -> str:
    head = (
        "cycle",
        "temperature",
        "valid",
        "best",
        "mean",
        "median",
        floor(run.config.selection.min_accuracy),
        "threshold",
        "near-duplicates",
        "accepted",
        "corpus",
        "tokens",
        "seconds",
    )
    rows = [
        (
            cycle.stats.cycle,
            NOTHING if cycle.stats.temperature is None else f"{cycle.stats.temperature:g}",
            proportion(cycle.valid),
            percent(cycle.best),
            mean(cycle.mean),
            percent(cycle.median),
            proportion(cycle.at_floor),
            percent(cycle.stats.threshold),
            cycle.stats.n_near_duplicate,
            cycle.stats.n_accepted,
            count(cycle.stats.corpus_size),
            count(cycle.stats.n_tokens),
            _seconds(cycle.stats.wall_seconds),
        )
        for cycle in run.summary.cycles
    ]
    return table(head, rows)


def _total_table(run: ReportedRun) -> str:
    whole = run.summary
    first, last = whole.cycles[0].stats, whole.cycles[-1].stats
    share = floor(run.config.selection.min_accuracy)
    rows: list[Row] = [
        (f"mean of the valid rates of {whole.valid_rate.n} cycles", mean(whole.valid_rate)),
        ("valid, all cycles together", proportion(whole.valid)),
        ("best first-epoch accuracy", percent(whole.best)),
        (f"mean first-epoch accuracy, {whole.accuracy.n} candidates", mean(whole.accuracy)),
        (share, proportion(whole.at_floor)),
        ("near-duplicates", proportion(whole.near_duplicate)),
        ("accepted", count(whole.n_accepted)),
        ("corpus, first cycle", count(first.corpus_size)),
        ("corpus, last cycle", count(last.corpus_size)),
        ("tokens", count(whole.n_tokens)),
        ("time", duration(whole.wall_seconds)),
        *_spending_rows(run.spending),
    ]
    return table(("", ""), rows)


def _spending_rows(spending: Spending | None) -> list[Row]:
    """What the LLM's server took, the cycle under way and what was lost included."""
    if spending is None:
        return []
    spent, each = spending.spent, spending.tokens_per_accepted
    rows: list[Row] = [
        ("prompt tokens, LLM server", count(spent.prompt_tokens)),
        ("sampled tokens, LLM server", count(spent.completion_tokens)),
        ("tokens for each accepted network", count(None if each is None else round(each))),
        ("cost", money(spending.cost)),
        ("cost of each accepted network", money(spending.cost_per_accepted)),
    ]
    if spent.unanswered:
        rows.append(("unanswered requests, charged as the longest", count(spent.unanswered)))
    return rows


def _outcome_table(run: ReportedRun) -> str:
    """Outcomes that occurred, in ladder order, a column a cycle."""
    cycles = run.summary.cycles
    head = ["outcome", *(str(c.stats.cycle) for c in cycles), "all"]
    rows = [
        [outcome.value, *(c.stats.outcomes.get(outcome.value, 0) for c in cycles), total]
        for outcome, total in run.summary.outcomes.items()
    ]
    return table(head, rows)


REASONS = (
    "Kinds of novelty (near-duplicates), limits of the configuration, flags of the evaluation and "
    "suspect text in the source (quarantined). A candidate may have several."
)


def _reason_table(run: ReportedRun) -> str:
    """What rejected how many valid candidates, a column a cycle."""
    cycles = run.summary.cycles
    by_cycle = [
        Counter(
            reason
            for decision in run.decisions
            if decision.id in {c.id for c in run.candidates if c.cycle == cycle.stats.cycle}
            for reason in decision.rejected_by
        )
        for cycle in cycles
    ]
    total = Counter[str]()
    for counts in by_cycle:
        total.update(counts)
    head = ["reason", *(str(c.stats.cycle) for c in cycles), "all"]
    rows = [[reason, *(c[reason] for c in by_cycle), n] for reason, n in sorted(total.items())]
    return table(head, rows)


TIME = (
    "Seconds. Generation and evaluation overlap: wall is from the start of generation to the last "
    "verdict, overlap is wall over the longer of the two. Evaluation: while at least one candidate "
    "was evaluated; longest: of one candidate. A cycle that was interrupted or is "
    "under way has no wall time."
)


def _time_table(run: ReportedRun) -> str:
    stats = [cycle.stats for cycle in run.summary.cycles]
    whole = {s.cycle for s in stats if s.wall_seconds is not None}
    interrupted = {s.cycle for s in run.spans} - whole
    head = ("cycle", "fine-tune", "generate", "evaluate", "longest", "wall", "overlap")
    rows = [
        (
            t.cycle,
            *map(_seconds, (t.finetune, t.generate, t.evaluate, t.longest, t.wall)),
            NOTHING if t.overlap is None else f"{t.overlap:.2f}",
        )
        for t in timelines(run.spans, interrupted)
    ]
    return table(head, rows)


DIVERSITY = (
    "Of the accepted networks. Distance: mean of 1 - J over their pairs (lexical shingles). "
    "Memorised: J >= 0.8 to a seed. Distinct graphs: different computations among those traced. "
    "New motifs: share of the neighbourhoods of their graphs (a second, third, ... one of a kind "
    "and each graph as a whole are counted too) that no seed and no network accepted "
    "in an earlier cycle has."
)
NO_SEEDS = "Not known: the seeds, `corpus/cycle_01.jsonl`, are not in the run directory."
NOT_TRACED = (
    "New motifs are not known: not every seed's graph is in this machine's cache. "
    "`archloop novelty --rejudge RUN` puts them there."
)


def _diversity_table(run: ReportedRun) -> str:
    names = [*(str(c.stats.cycle) for c in run.summary.cycles), "all"]
    head = ("cycle", "accepted", "distance", "memorised", "distinct graphs", "new motifs")
    rows = [
        (
            name,
            d.n,
            NOTHING if d.distance is None else f"{d.distance:.3f}",
            f"{d.memorised}/{d.n}",
            f"{d.distinct_graphs}/{d.traced}",
            percent(d.new_motifs, 1),
        )
        for name, d in zip(names, run.diversity, strict=True)
    ]
    return table(head, rows)


def _paper_table() -> str:
    head = ("cycle", "valid", "best", "mean", ">= 40 %", "accepted", "corpus")
    rows = [
        (
            r.cycle,
            r.valid,
            f"{r.best:.2f}",
            f"{r.mean:.2f}",
            r.above_40,
            r.accepted,
            count(r.corpus),
        )
        for r in TABLE_2
    ]
    return table(head, rows)


def _seconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds:,.0f}"
