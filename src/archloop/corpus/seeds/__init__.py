"""Seed networks: the networks that a run starts from, as prompt-code pairs.

A new source is a class with ``digest`` and ``networks()`` in a file of its own, and a line in
:func:`open_source`.
"""

from __future__ import annotations

from pathlib import Path

from archloop.config import SeedsConfig
from archloop.corpus.seeds.build import build_corpus
from archloop.corpus.seeds.designs import DesignSource
from archloop.corpus.seeds.files import DirectorySource, JsonlSource
from archloop.corpus.seeds.lemur import LemurSource
from archloop.corpus.seeds.report import SeedReport
from archloop.corpus.seeds.runs import RunSource
from archloop.corpus.seeds.source import SeedNetwork, SeedSource
from archloop.errors import ConfigError, UsageError

__all__ = ["SOURCES", "SeedNetwork", "SeedReport", "SeedSource", "build_corpus", "open_source"]

SOURCES = ("lemur", "designs", "directory", "jsonl", "run")


def open_source(config: SeedsConfig, seed: int = 0) -> SeedSource:
    """The configured seed source.

    Args:
        config: Says which.
        seed: Of the run, for networks that are made.

    Raises:
        ConfigError: No corpus is built from this source.
        UsageError: Its file or folder is missing or empty.
    """
    path = Path(config.path or "")
    if not path.exists():
        raise UsageError(f"seeds.path: no such file or folder: {path.absolute()}")
    match config.source:
        case "lemur":
            return LemurSource(Path(config.path) if config.path else None)
        case "designs":
            return DesignSource(config.count, seed)
        case "directory":
            return DirectorySource(path)
        case "jsonl":
            return JsonlSource(path)
        case "run":
            return RunSource(path)
        case other:
            raise ConfigError(
                f"seeds.source: {other!r} builds no corpus; allowed here: {', '.join(SOURCES)}"
            )
