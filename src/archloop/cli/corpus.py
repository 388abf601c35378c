"""``archloop corpus build``."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from archloop.cli.options import FilePath, config_option, echo_text, not_empty, set_option


@click.group("corpus")
def corpus_group() -> None:
    """Prompt-code pairs to start from."""


@corpus_group.command("build")
@click.option(
    "--source",
    "seed_source",
    metavar="NAME[:PATH]",
    callback=not_empty,
    help="lemur, designs, directory, jsonl or run, with its folder or file: run:runs/demo; "
    "overrides seeds.source and seeds.path.",
)
@click.option(
    "--path",
    "seed_path",
    callback=not_empty,
    help="Folder or file of the source; overrides seeds.path.",
)
@click.option("--split", is_flag=True, help="Write train, dev and test apart (seeds.split).")
@click.option("--out", required=True, type=FilePath(file_okay=False), metavar="DIR")
@config_option
@set_option
def build_command(
    seed_source: str | None,
    seed_path: str | None,
    split: bool,
    out: Path,
    source: str,
    overrides: tuple[str, ...],
) -> None:
    """Turn a seed source into chat pairs, with a report of every step and dropped network."""
    from archloop.cli.screen import open_screen
    from archloop.config import load_config
    from archloop.corpus.pairs import read_pairs, write_pairs
    from archloop.corpus.seed_corpus import seed_corpus
    from archloop.corpus.seeds import SOURCES
    from archloop.corpus.seeds.split import SHARES
    from archloop.errors import UsageError
    from archloop.evaluation.executor import build_executor
    from archloop.evaluation.probing import seed_prober, seed_tracer
    from archloop.files import check_new, filling

    name, colon, below = (seed_source or "").partition(":")
    flags: dict[str, object] = {"seeds.source": name} if name else {}
    # A source named here does not read the path that the preset gives to another one.
    path = seed_path or below or ("" if colon else None)
    if path or (name and path is None):
        flags["seeds.path"] = path or None
    if split:
        flags["seeds.split"] = True
    config = load_config(source, overrides, flags)
    if config.seeds.source not in SOURCES:
        raise UsageError(
            f"seeds.source: {config.seeds.source!r} builds no corpus; "
            f"name one with --source: {', '.join(SOURCES)}"
        )
    check_new(out)
    with open_screen() as screen, build_executor(config.sandbox) as executor:
        corpus = seed_corpus(
            config, screen, seed_prober(executor, screen), seed_tracer(executor, screen)
        )
    with filling(out) as folder:
        for file in (corpus.pairs_file, corpus.report_json, corpus.report_markdown):
            shutil.copyfile(file, folder / file.name)
        if config.seeds.split:
            pairs = read_pairs(corpus.pairs_file)
            for part in SHARES:
                chosen = (p for p in pairs if p.meta["split"] == part)
                write_pairs(folder / f"{part}.jsonl", chosen)
    echo_text(corpus.report_markdown.read_text("utf-8"))
    echo_text(str(out / corpus.pairs_file.name))


@corpus_group.command("export")
@click.argument("run", type=FilePath(file_okay=False))
@click.option("--out", required=True, type=FilePath(file_okay=False), metavar="DIR")
@click.option(
    "--prefix",
    default="archloop",
    show_default=True,
    help="First part of each name: letters, digits and '-'.",
)
def export_command(run: Path, out: Path, prefix: str) -> None:
    """Write the accepted networks of a run as LEMUR keeps its own: nn/NAME.py and statistics."""
    from archloop.corpus.seeds.export import export_run
    from archloop.files import filling
    from archloop.store.run_dir import Run

    with Run.open(run) as opened, filling(out) as folder:
        names = export_run(opened, folder, prefix)
    echo_text(f"{len(names)} networks in {out}")
