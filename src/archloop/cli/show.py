"""``archloop show``: everything a run knows about one candidate."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archloop.cli.options import FilePath, echo_json, echo_text, json_option
from archloop.text import visible

if TYPE_CHECKING:
    from rich.console import Console

    from archloop.store.run_dir import Run
    from archloop.types import Candidate, Completion, Decision, Request

_ID = re.compile(r"c?(\d{1,9})-(\d{1,9})")
_NAMED = 4
"""Cycles that are named where a candidate is unknown; the last of them stands for the rest."""


@dataclass(frozen=True)
class _Shown:
    """What the store has of one completion."""

    completion: Completion
    request: Request
    candidate: Candidate | None
    """``None``: there is no verdict yet."""
    decision: Decision | None
    threshold: float | None
    neighbours: dict[str, Candidate]
    """The nearest networks that are candidates of the run."""


@click.command("show")
@click.argument("run_dir", type=FilePath(), metavar="RUN")
@click.argument("candidate", metavar="CANDIDATE")
@json_option
def show_command(run_dir: Path, candidate: str, as_json: bool) -> None:
    """Show one candidate of a run: prompt, completion, code, verdict and decision.

    CANDIDATE is an id as in the tables, for example c01-0007.
    """
    from archloop.cli.screen import open_console
    from archloop.store.run_dir import Run

    with Run.open(run_dir) as run:
        shown = _find(run, candidate)
    if as_json:
        echo_json(_row(shown))
    else:
        _show(shown, open_console())


def _find(run: Run, named: str) -> _Shown:
    """What the run has of a candidate.

    Raises:
        UsageError: It has no such candidate.
    """
    from archloop.errors import UsageError

    store, found = run.store, _ID.fullmatch(named.strip())
    cycle, index = (int(found[1]), int(found[2])) if found else (0, 0)
    completion = next((c for c in store.completions(cycle) if c.index == index), None)
    if completion is None:
        raise UsageError(_unknown(run, named))
    candidates = {c.id: c for c in store.candidates()}
    candidate = next((c for c in candidates.values() if (c.cycle, c.index) == (cycle, index)), None)
    nearest = (candidate.nearest, candidate.nearest_graph) if candidate else ()
    decisions = store.decisions(cycle)
    return _Shown(
        completion=completion,
        request=next(r for r in store.requests(cycle) if r.index == index),
        candidate=candidate,
        decision=next((d for d in decisions if candidate and d.id == candidate.id), None),
        threshold=next((s.threshold for s in store.cycles() if s.cycle == cycle), None),
        neighbours={name: candidates[name] for name in nearest if name in candidates},
    )


def _unknown(run: Run, named: str) -> str:
    """The line that says which candidates there are."""
    from archloop.store.rows import candidate_id

    ranges = []
    for cycle in itertools.count(1):
        if not (there := run.store.completions(cycle)):
            break
        first, last = there[0].index, there[-1].index
        ranges.append(f"{candidate_id(cycle, first)} to {candidate_id(cycle, last)}")
    if len(ranges) > _NAMED:
        ranges = [*ranges[: _NAMED - 1], "...", ranges[-1]]
    known = f"there are {', '.join(ranges)}" if ranges else "nothing is sampled yet"
    return f"{run.paths.root}: no candidate '{visible(named):.100}'; {known}"


def _row(shown: _Shown) -> dict[str, Any]:
    """The public row of the candidate, and what the other commands leave out."""
    request, completion, decision = shown.request, shown.completion, shown.decision
    row: dict[str, Any] = {"id": _id(shown), "cycle": request.cycle, "outcome": None}
    if shown.candidate is not None:
        row = shown.candidate.to_json()
    return row | {
        "rejected_by": None if decision is None else list(decision.rejected_by),
        "threshold": shown.threshold,
        "prompt": list(request.messages),
        "seed": request.seed,
        "temperature": request.temperature,
        "origin": asdict(request.origin),
        "completion": completion.text,
        "n_tokens": completion.n_tokens,
        "finish_reason": completion.finish_reason,
        "code": shown.candidate and shown.candidate.code,
    }


def _id(shown: _Shown) -> str:
    from archloop.store.rows import candidate_id

    return candidate_id(shown.completion.cycle, shown.completion.index)


def _show(shown: _Shown, console: Console) -> None:
    """All of it; the verdict comes last, where a terminal ends up."""
    from archloop.cli.runs import show_code

    def heading(text: str) -> None:
        console.print(f"\n== {visible(text)} ==", style="bold", highlight=False, emoji=False)

    if not shown.request.messages:
        heading("prompt")
        echo_text("none stored")
    for message in shown.request.messages:
        heading(f"prompt, {message['role']}")
        echo_text(visible(message["content"]))
    completion = shown.completion
    heading(f"completion: {completion.n_tokens} tokens, ended by {completion.finish_reason}")
    echo_text(visible(completion.text))
    if shown.candidate is not None and shown.candidate.code is not None:
        heading("code")
        show_code(visible(shown.candidate.code), console)
    heading(_id(shown))
    for name, said in _facts(shown):
        echo_text(f"{name}: {visible(said)}")


def _facts(shown: _Shown) -> Iterator[tuple[str, str]]:
    """Name and value of each line about the candidate."""
    request, candidate = shown.request, shown.candidate
    if candidate is None:
        yield "outcome", "no verdict yet"
    else:
        yield "outcome", candidate.outcome.value
        if candidate.error:
            yield "error", candidate.error
        yield "flags", ", ".join(candidate.flags) or "none"
        yield from _measures(candidate)
        yield from _decided(shown, candidate)
        for key in ("isolation", "protocol", "training"):
            if (value := getattr(candidate, key)) is not None:
                yield key, value
    origin = request.origin
    parents = f", from {', '.join(origin.parents)}" if origin.parents else ""
    asked = f"{origin.operator}{parents}, seed {request.seed}, temperature {request.temperature:g}"
    yield "request", f"{asked}, task {request.task}"


def _measures(candidate: Candidate) -> Iterator[tuple[str, str]]:
    """What was measured, by the names of the tables."""
    from archloop.novelty.structure import structure_class
    from archloop.search.archive import AGAIN
    from archloop.search.measures import MEASURES
    from archloop.types import PROFILE

    named = ("first_epoch_accuracy", "harness_accuracy", "n_params", "train_seconds")
    values = {name: getattr(candidate, name) for name in named} | candidate.measures
    for name, value in values.items():
        if value is None or (name in PROFILE and not value):
            continue
        measure = MEASURES.get(name)
        if name.startswith(AGAIN):
            yield f"trained again, {name.removeprefix(AGAIN)}", f"{value:.2%}"
        elif measure is None:
            yield name, f"{value:g}"
        elif measure.unit == "fraction":
            yield name, f"{value:.2%}"
        else:
            yield name, f"{value:,.1f}".removesuffix(".0") + f" {measure.unit}"
    if (found := structure_class(candidate.measures)) is not None:
        yield "structure", found


def _decided(shown: _Shown, candidate: Candidate) -> Iterator[tuple[str, str]]:
    """The decision, what rejected the candidate, and the networks that are nearest to it."""
    decision = shown.decision
    if decision is None:
        if candidate.outcome.is_valid:
            yield "decision", "none yet: the cycle is not committed"
        return
    why = f", rejected by {', '.join(decision.rejected_by)}" if decision.rejected_by else ""
    floor = "" if shown.threshold is None else f" (threshold of the cycle {shown.threshold:.2%})"
    yield "decision", f"{decision.outcome.value}{why}{floor}"
    scores = decision.scores
    text = f"J_train {scores.nn_jaccard_train:.4f}, J_gen {scores.nn_jaccard_gen:.4f}"
    folded = f"{scores.nn_normalized_train:.4f} and {scores.nn_normalized_gen:.4f}"
    yield "similarity", f"{text}; with names and numbers folded {folded}"
    yield "nearest by text", _nearest(shown, scores.nearest)
    if scores.nn_graph_train is None or scores.nn_graph_gen is None:
        yield "graph", "not traced"
        return
    graph = f"train {scores.nn_graph_train:.4f}, gen {scores.nn_graph_gen:.4f}"
    yield "similarity by graph", graph
    yield "nearest by graph", _nearest(shown, scores.nearest_graph)


def _nearest(shown: _Shown, name: str | None) -> str:
    """A nearest network's name, with what it reached if it is a candidate of this run."""
    if name is None:
        return "none retrieved"
    found = shown.neighbours.get(name)
    if found is None or found.first_epoch_accuracy is None:
        return name
    return f"{name} ({found.outcome.value}, {found.first_epoch_accuracy:.2%})"
