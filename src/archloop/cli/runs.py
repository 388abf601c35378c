"""``archloop run``, ``status`` and ``report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from archloop.cli.options import (
    FilePath,
    configuration,
    echo_json,
    echo_text,
    json_option,
    resumable,
    set_option,
)
from archloop.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from archloop.store.run_dir import Run
    from archloop.types import Candidate, CycleStats


@click.command("run")
@click.argument("source", required=False, metavar="[CONFIG.toml|PRESET]")
@click.option(
    "--run-dir",
    type=FilePath(file_okay=False),
    help="Where the run is kept [default: runs/NAME]. A run that is there is resumed.",
)
@set_option
def run_command(source: str | None, run_dir: Path | None, overrides: tuple[str, ...]) -> None:
    """Start a run, or resume an interrupted one.

    Without an argument: the embedded preset, or what the run directory began with.
    """
    from archloop.cli.screen import open_console, open_screen
    from archloop.loop.run import run
    from archloop.report import format_cycle_table

    run_dir = run_dir or Path("runs") / Path(source or "embedded").stem
    config = configuration(source, run_dir, overrides)

    def rows(stats: Sequence[CycleStats], last: int) -> Table:
        return format_cycle_table(stats, config, last)

    with resumable(), open_screen(rows) as screen:
        finished = run(config, run_dir, screen)
    with finished:
        _show_end(finished, open_console())


def _show_end(run: Run, console: Console) -> None:
    """The table of cycles, the best network's file and where everything lies."""
    from archloop.report import outcome_counts

    _show_cycles(run, console)
    _show_spending(run, console)
    valid = [c for c in run.store.candidates() if c.first_epoch_accuracy is not None]
    if valid:
        best = max(valid, key=lambda c: c.first_epoch_accuracy or 0.0)
        params = "" if best.n_params is None else f", {best.n_params:,} parameters"
        console.print(
            f"\nBest network: {best.id}, first-epoch accuracy {best.first_epoch_accuracy:.2%}"
            f"{params}{_file_of(run, best)}",
            soft_wrap=True,
            highlight=False,
        )
    else:
        console.print(f"No candidate was valid: {outcome_counts(run)}.", highlight=False)
    task = printable(run.task())
    console.print(f"Task: {task}. Run directory: {run.paths.root}", soft_wrap=True)
    console.print(f"For the tables: archloop report {run.paths.root} --out report", soft_wrap=True)


def _file_of(run: Run, candidate: Candidate) -> str:
    """Where a network's code is, and how long; nothing of a run that was copied without it."""
    if candidate.cycle is None:
        return ""
    file = run.paths.candidate(candidate.cycle, candidate.id)
    if not file.is_file():
        return ""
    return f"\n    {file} ({len((candidate.code or '').splitlines())} lines)"


def _show_cycles(run: Run, console: Console) -> None:
    """The table of cycles; on a terminal that is too narrow for it, a paragraph for each cycle."""
    from archloop.cli.screen import ANY_WIDTH
    from archloop.report import format_cycle_table, format_cycles

    stats = run.cycles()
    table = format_cycle_table(stats, run.config)
    if not stats:
        console.print("No cycle is committed yet.")
        return
    wanted = console.measure(table, options=console.options.update(width=ANY_WIDTH)).maximum
    if wanted <= console.width:
        console.print(table)
    else:
        console.print(format_cycles(stats, run.config), highlight=False)


@click.command("status")
@click.argument("run_dir", type=FilePath(), metavar="RUN")
@json_option
def status_command(run_dir: Path, as_json: bool) -> None:
    """Where a run stands, cycle by cycle."""
    from archloop.cli.screen import open_console
    from archloop.report import current_line, progress_lines, status_json
    from archloop.store.run_dir import Run

    with Run.open(run_dir) as run:
        if as_json:
            echo_json(status_json(run))
            return
        console = open_console()
        console.print(f"{run.paths.root}: {run.state()}", soft_wrap=True)
        _show_cycles(run, console)
        if line := current_line(run):
            console.print(line, highlight=False)
        for line in progress_lines(run):
            console.print(line, soft_wrap=True, highlight=False)
        _show_spending(run, console)


def _show_spending(run: Run, console: Console) -> None:
    """A line about the LLM's server, where there is one."""
    from archloop.report import spending_line, spending_of

    found = spending_of(run)
    if found is not None:
        line = spending_line(found.spent, priced=found.priced, n_accepted=found.n_accepted)
        console.print(line, soft_wrap=True, highlight=False)


@click.command("report")
@click.argument("run_dirs", nargs=-1, required=True, type=FilePath(), metavar="RUN...")
@click.option("--out", required=True, type=FilePath(file_okay=False), metavar="DIR")
def report_command(run_dirs: tuple[Path, ...], out: Path) -> None:
    """Write the tables of one or more runs as Markdown and CSV."""
    from archloop.report import write_report

    for path in write_report(run_dirs, out):
        echo_text(str(path))
