"""``archloop evaluate`` and ``novelty``: for networks in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from archloop.cli.options import (
    FilePath,
    config_option,
    configuration,
    echo_json,
    echo_text,
    json_option,
    set_option,
)

if TYPE_CHECKING:
    from archloop.config import RunConfig
    from archloop.evaluation.alone import Evaluation, Source
    from archloop.evaluation.compare import Compared
    from archloop.types import Candidate

_FILES = click.argument(
    "paths",
    nargs=-1,
    required=True,
    type=FilePath(exists=True),
    metavar="FILE.py...",
)


def _read_sources(paths: Sequence[Path]) -> list[Source]:
    """Every file, named as given; folders stand for the ``.py`` files in them."""
    from archloop.code.reading import decode_source
    from archloop.errors import UsageError
    from archloop.evaluation.alone import Source
    from archloop.files import read_regular

    sources = []
    for path in paths:
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        if not files:
            raise UsageError(f"{path}: no .py files in this folder")
        sources += [Source(str(file), *decode_source(read_regular(file))) for file in files]
    return sources


def _row(candidate: Candidate, file: str) -> dict[str, object]:
    row = candidate.to_json() | {"id": Path(file).stem}
    return {"id": row.pop("id"), "file": file, **row}


@click.command("evaluate")
@_FILES
@click.option(
    "--task",
    help="Task name, dataset id, folder of images, table or .npz file; overrides task.name.",
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
    type=click.IntRange(1, 1000),
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
    from archloop.evaluation.alone import evaluate_many
    from archloop.progress import Progress
    from archloop.tasks import load_task

    flags = {"task.name": task, "protocol.training": protocol, "sandbox.isolation": isolation}
    given = {key: value for key, value in flags.items() if value is not None}
    config = load_config(source, overrides, given)
    named = _read_sources(paths)
    n_valid = 0
    with open_screen() as screen:
        screen.update(
            Progress("evaluate", total=len(named), unit="networks", detail=config.task.name)
        )
        data = load_task(config.task, config.protocol)
        screen.message(data.info.summary)
        for done, candidate in enumerate(evaluate_many(named, config, data, seeds=seeds), 1):
            n_valid += candidate.outcome.is_valid
            with screen.aside():
                if as_json:
                    echo_json(_row(candidate, candidate.id))
                else:
                    echo_text(_line(candidate))
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
@click.argument("paths", nargs=-1, type=FilePath(exists=True), metavar="[FILE.py...]")
@click.option(
    "--against",
    type=FilePath(),
    metavar="CORPUS.jsonl",
    help="Chat corpus the networks are compared with.",
)
@click.option(
    "--rejudge",
    type=FilePath(),
    metavar="RUN",
    help="Judge the candidates of a run again; the configuration is the run's if none is named.",
)
@click.option("--graph", is_flag=True, help="Compare traced graphs too; tracing takes a moment.")
@click.option("--diff/--no-diff", default=True, help="Show the difference to the nearest network.")
@click.option(
    "--config",
    "source",
    metavar="PRESET|FILE",
    help="Preset or TOML file that the other keys come from [default: RUN's, else embedded].",
)
@set_option
@json_option
def novelty_command(
    paths: tuple[Path, ...],
    against: Path | None,
    rejudge: Path | None,
    graph: bool,
    diff: bool,
    source: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare networks with a corpus, and each with those named before it.

    Networks that are no near-duplicate count as accepted for the ones after them. With --rejudge
    nothing is trained again: the run's stored scores, sources and graphs are enough.

    "No neighbour found": the index, which looks for those as similar as novelty.lsh_threshold,
    retrieved none. With --json such a similarity is null.
    """
    from archloop.config import load_config
    from archloop.errors import UsageError

    if bool(rejudge) == bool(paths) or bool(paths) != bool(against):
        raise UsageError("expected FILE.py... with --against CORPUS.jsonl, or --rejudge RUN alone")
    if rejudge is not None:
        if graph:
            raise UsageError("--graph: a run's graphs are stored; what judges is novelty.kind")
        _rejudge(rejudge, configuration(source, rejudge, overrides), as_json=as_json)
        return
    assert against is not None
    config = load_config(source, overrides)
    from archloop.corpus.pairs import distinct_codes, read_pairs
    from archloop.evaluation.compare import compare_files
    from archloop.report.structures import in_words

    known = dict(distinct_codes(read_pairs(against)))
    if not known:
        raise UsageError(f"{against}: no network to compare with; expected chat rows with code")
    rows, motifs = [], 0
    for found in compare_files(_read_sources(paths), known, config, graphs=graph):
        row = found.row
        if as_json:
            echo_json(_row(row, row.id) | {"new_motifs": found.new_motifs})
            continue
        echo_text(_novelty_line(found))
        if diff and found.nearest is not None:
            echo_text(_diff(row, found.nearest))
        rows.append(row)
        motifs += len(found.new_motifs or ())
    novel = [row.measures for row in rows if row.outcome.value == "valid"]
    if len(rows) > 1 and (text := in_words([row.measures for row in rows])) is not None:
        echo_text(f"classes: {text}; operator motifs in no known network {motifs}")
        echo_text(f"classes of the novel: {in_words(novel) or 'none'}")


def _novelty_line(found: Compared) -> str:
    from archloop.novelty.structure import structure_class

    row = found.row
    if row.error:
        return f"{row.id}: {row.outcome.value}: {row.error}"
    text = (
        f"{row.id}: J_train {_similarity(row.nn_jaccard_train)}, "
        f"J_gen {_similarity(row.nn_jaccard_gen)}, nearest {row.nearest or '-'}"
    )
    if row.graph is not None:
        graph = max(row.nn_graph_train or 0.0, row.nn_graph_gen or 0.0)
        text += f"; graph {_similarity(graph or None)}"
        text += f", nearest {row.nearest_graph or '-'}"
        text += f"; {structure_class(row.measures)}, {len(found.new_motifs or ())} new motifs"
    return text + (" (near-duplicate)" if row.outcome.value == "near_duplicate" else "")


def _similarity(value: float | None) -> str:
    return "no neighbour found" if value is None else f"{value:.4f}"


def _diff(row: Candidate, nearest: str) -> str:
    """Between the cleaned sources, so that layout and comments do not show."""
    import difflib

    from archloop.code.clean import clean_source

    def lines(code: str) -> list[str]:
        try:
            return clean_source(code).splitlines()
        except SyntaxError:
            return code.splitlines()

    found = difflib.unified_diff(
        lines(nearest), lines(row.code or ""), row.nearest or "", row.id, lineterm="", n=1
    )
    return "\n".join(f"    {line}" for line in found) or "    (the same once cleaned)"


def _rejudge(run: Path, config: RunConfig, *, as_json: bool) -> None:
    from archloop.loop.rejudge import rejudge
    from archloop.report.structures import in_words

    changed = 0
    accepted: dict[str, list[Candidate]] = {"before": [], "after": []}
    for before, after in rejudge(run, config):
        for when, row in (("before", before), ("after", after)):
            if row.outcome.value == "accepted":
                accepted[when].append(row)
        changed += before.outcome is not after.outcome
        if as_json:
            echo_json(after.to_json() | {"outcome_before": before.outcome.value})
        elif before.outcome is not after.outcome:
            echo_text(f"{after.id}: {before.outcome.value} -> {after.outcome.value}")
    if as_json:
        return
    for when, rows in accepted.items():
        if (text := in_words([row.measures for row in rows])) is not None:
            echo_text(f"classes of the accepted {when}: {text}")
    counts = " -> ".join(str(len(rows)) for rows in accepted.values())
    echo_text(f"{changed} outcomes differ; accepted {counts}")
