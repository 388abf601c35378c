"""``archloop cache``: what is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

import click

from archloop.cli.options import echo_json, echo_text, json_option


@click.command("cache")
@click.option("--clear", is_flag=True, help="Remove it; what is needed again is made again.")
@json_option
def cache_command(clear: bool, as_json: bool) -> None:
    """Show what is cached: downloads, LLMs, decoded images, seed corpora.

    The cache is the folder that ARCHLOOP_CACHE names, else archloop in the user's cache folder. The
    Hugging Face hub's own cache, which other programs share, is left alone.
    """
    from archloop.machine.cache import clear as clear_cache
    from archloop.machine.cache import entries
    from archloop.machine.downloads import cache_dir
    from archloop.text import bytes_in_words

    found = clear_cache() if clear else entries()
    if as_json:
        for entry in found:
            row = {"path": str(entry.path), "kind": entry.kind, "bytes": entry.size}
            echo_json(row | {"cleared": clear})
        return
    total = sum(entry.size for entry in found)
    for entry in found:
        where = entry.path.relative_to(cache_dir())
        echo_text(f"{bytes_in_words(entry.size):>10}  {where}  ({entry.kind})")
    if not found:
        said = "nothing is cached"
    elif clear:
        said = f"{bytes_in_words(total)} freed ({total:,} bytes)"
    else:
        said = f"{bytes_in_words(total)} in all ({total:,} bytes); --clear removes it"
    echo_text(f"{cache_dir()}: {said}")
    if (hub := _hub()).is_dir():
        echo_text(f"{hub}: the Hugging Face hub's cache, not touched; see 'hf cache --help'")


def _hub() -> Path:
    """The hub's cache, as its library finds it."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or user_cache / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
