"""``archloop evaluate`` and ``novelty``: for networks in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from archloop.cli.options import config_option, echo_json, json_option, set_option

if TYPE_CHECKING:
    from archloop.evaluation import Evaluation
    from archloop.types import Candidate

_FILES = click.argument(
    "paths",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE.py...",
)


def _read_sources(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """(file as given, code) of every file; folders stand for the ``.py`` files in them."""
    from archloop.errors import UsageError

    sources = []
    for path in paths:
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        if not files:
            raise UsageError(f"{path}: no .py files in this folder")
        sources += [(str(file), file.read_text("utf-8", errors="replace")) for file in files]
    return sources


def _row(candidate: Candidate, file: str) -> dict[str, object]:
    row = candidate.to_json() | {"id": Path(file).stem, "cycle": None}
    return {"id": row.pop("id"), "file": file, **row}


@click.command("evaluate")
@_FILES
@click.option(
    "--task", help="Task name, dataset id or folder of class folders; overrides task.name."
)
@click.option(
    "--protocol",
    type=click.Choice(["contract", "harness", "both"]),
    help="Train by the network's own learn(), by a fixed loop, or by each in turn; "
    "overrides protocol.training.",
)
@click.option(
    "--isolation",
    type=click.Choice(["process", "confined", "bwrap"]),
    help="How far the network is locked in, weakest first; overrides sandbox.isolation.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Train with this many seeds: the mean accuracy and its 95 % interval.",
)
@config_option
@set_option
@json_option
def evaluate_command(
    paths: tuple[Path, ...],
    task: str | None,
    protocol: str | None,
    isolation: str | None,
    seeds: int,
    source: str,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check networks and train each for one epoch in the sandbox: one row a network."""
    from archloop.cli.screen import open_screen
    from archloop.config import load_config
    from archloop.evaluation import Source, evaluate_many
    from archloop.progress import Progress

    flags = {"task.name": task, "protocol.training": protocol, "sandbox.isolation": isolation}
    extra = [f"{key}={value}" for key, value in flags.items() if value is not None]
    config = load_config(source, (*overrides, *extra))
    sources = _read_sources(paths)
    named = [Source(file, code) for file, code in sources]
    n_valid = 0
    with open_screen() as screen:
        screen.update(
            Progress("evaluate", total=len(named), unit="networks", detail=config.task.name)
        )
        for done, candidate in enumerate(evaluate_many(named, config, seeds=seeds), 1):
            n_valid += candidate.outcome.is_valid
            if as_json:
                echo_json(_row(candidate, candidate.id))
            else:
                click.echo(_line(candidate))
            screen.update(
                Progress("evaluate", done=done, total=len(named), unit="networks", n_valid=n_valid)
            )


def _line(row: Evaluation) -> str:
    advice = f"\n    {row.hint}" if row.hint else ""
    if row.first_epoch_accuracy is None:
        return f"{row.id}: {row.outcome.value}: {row.error}{advice}"
    spread = ""
    if row.accuracy_interval is not None:
        low, high = row.accuracy_interval
        spread = f" [{low:.2%}, {high:.2%}] over {len(row.accuracies)} seeds"
    fixed = "" if row.harness_accuracy is None else f" (fixed loop {row.harness_accuracy:.2%})"
    flags = f", flags: {', '.join(row.flags)}" if row.flags else ""
    return (
        f"{row.id}: {row.outcome.value}, first-epoch accuracy {row.first_epoch_accuracy:.2%}"
        f"{spread}{fixed}, {row.n_params:,} parameters, {row.train_seconds:.1f} s{flags}{advice}"
    )


@click.command("novelty")
@_FILES
@click.option(
    "--against",
    required=True,
    type=click.Path(path_type=Path),
    metavar="CORPUS.jsonl",
    help="Chat corpus the networks are compared with.",
)
@config_option
@set_option
@json_option
def novelty_command(
    paths: tuple[Path, ...], against: Path, source: str, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Compare networks with a corpus, and each with those named before it.

    Networks that are no near-duplicate count as accepted for the ones after them.
    """
    from archloop.code_policy import check
    from archloop.config import load_config
    from archloop.corpus import distinct_codes, read_pairs
    from archloop.novelty import NoveltyJudge
    from archloop.types import Candidate, Outcome

    judge = NoveltyJudge(load_config(source, overrides).novelty)
    for id_, code in distinct_codes(read_pairs(against)):
        judge.add_known(id_, code)
    judge.start_cycle()
    rejected = 0
    for index, (file, code) in enumerate(_read_sources(paths)):
        candidate = Candidate(id=file, cycle=0, index=index, outcome=Outcome.VALID)
        fault = check(code)
        if fault is not None and fault.outcome is Outcome.SYNTAX_ERROR:
            candidate = replace(candidate, outcome=fault.outcome, error=fault.error)
        else:
            scores = judge.judge(file, code)
            candidate = replace(
                candidate,
                outcome=Outcome.NEAR_DUPLICATE if scores.is_near_duplicate else Outcome.VALID,
                nn_jaccard_train=scores.nn_jaccard_train,
                near_dup_text_train=scores.near_dup_text_train,
                nn_jaccard_gen=scores.nn_jaccard_gen,
                near_dup_text_gen=scores.near_dup_text_gen,
                nearest=scores.nearest,
                rejection_count=rejected,
            )
            rejected = rejected + 1 if scores.is_near_duplicate else 0
            if not scores.is_near_duplicate:
                judge.accept(file, code)
        if as_json:
            echo_json(_row(candidate, file))
        elif candidate.error:
            click.echo(f"{file}: {candidate.outcome.value}: {candidate.error}")
        else:
            click.echo(
                f"{file}: J_train {candidate.nn_jaccard_train:.4f}, J_gen "
                f"{candidate.nn_jaccard_gen:.4f}, nearest {candidate.nearest or '-'}"
                + (" (near-duplicate)" if candidate.outcome is Outcome.NEAR_DUPLICATE else "")
            )
