"""``archloop corpus build``."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from archloop.cli.options import config_option, echo_text, set_option


@click.group("corpus")
def corpus_group() -> None:
    """Prompt-code pairs to start from."""


@corpus_group.command("build")
@click.option(
    "--source",
    "seed_source",
    metavar="NAME[:PATH]",
    help="lemur, directory, jsonl or run, with its folder or file: run:runs/demo; overrides "
    "seeds.source and seeds.path.",
)
@click.option("--path", "seed_path", help="Folder or file of the source; overrides seeds.path.")
@click.option("--split", is_flag=True, help="Write train, dev and test apart (seeds.split).")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="DIR"
)
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
    from archloop.corpus import read_pairs, seed_corpus, write_pairs
    from archloop.errors import UsageError
    from archloop.seeds import SOURCES
    from archloop.seeds.split import SHARES

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
    with open_screen() as screen:
        corpus = seed_corpus(config, screen)
    out.mkdir(parents=True, exist_ok=True)
    for file in (corpus.pairs_file, corpus.report_json, corpus.report_markdown):
        shutil.copyfile(file, out / file.name)
    if config.seeds.split:
        pairs = read_pairs(corpus.pairs_file)
        for part in SHARES:
            write_pairs(out / f"{part}.jsonl", (p for p in pairs if p.meta["split"] == part))
    echo_text(corpus.report_markdown.read_text("utf-8"))
    echo_text(str(out / corpus.pairs_file.name))


@corpus_group.command("export")
@click.argument("run", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="DIR"
)
@click.option("--prefix", default="archloop", show_default=True, help="First part of each name.")
def export_command(run: Path, out: Path, prefix: str) -> None:
    """Write the accepted networks of a run as LEMUR keeps its own: nn/NAME.py and statistics."""
    from archloop.run_dir import Run
    from archloop.seeds.export import export_run

    with Run.open(run) as opened:
        names = export_run(opened, out, prefix)
    echo_text(f"{len(names)} networks in {out}")
