"""``archloop corpus build``."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from archloop.cli.options import config_option, set_option


@click.group("corpus")
def corpus_group() -> None:
    """Prompt-code pairs to start from."""


@corpus_group.command("build")
@click.option("--source", "seed_source", help="lemur, directory or jsonl; overrides seeds.source.")
@click.option("--path", "seed_path", help="Folder or file of the source; overrides seeds.path.")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="DIR"
)
@config_option
@set_option
def build_command(
    seed_source: str | None,
    seed_path: str | None,
    out: Path,
    source: str,
    overrides: tuple[str, ...],
) -> None:
    """Turn a seed source into chat pairs, with a report of every step and dropped network."""
    from archloop.cli.screen import open_screen
    from archloop.config import load_config
    from archloop.corpus import seed_corpus
    from archloop.errors import UsageError
    from archloop.seeds import SOURCES

    extra = [f"seeds.source={seed_source}"] if seed_source else []
    extra += [f"seeds.path={seed_path}"] if seed_path else []
    config = load_config(source, (*overrides, *extra))
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
    click.echo(corpus.report_markdown.read_text("utf-8"))
    click.echo(str(out / corpus.pairs_file.name))
