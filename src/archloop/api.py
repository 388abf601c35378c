"""``archloop.run`` for notebooks and scripts: the loop, with its progress on stderr."""

from __future__ import annotations

from pathlib import Path

from archloop.cli.screen import open_screen
from archloop.config import RunConfig, load_config
from archloop.loop.run import run as run_loop
from archloop.progress import Observer
from archloop.store.run_dir import Run


def run(
    config: RunConfig | str | None = None,
    run_dir: str | Path | None = None,
    observer: Observer | None = None,
) -> Run:
    """Start a run, or resume the one in ``run_dir``; returns it finished and open for reading.

    Args:
        config: A configuration, or the name of a preset or TOML file; ``None``: what the run
            directory began with, else the preset ``embedded``.
        run_dir: Where everything of the run is kept; ``None``: ``runs/NAME``, after the preset or
            file, ``runs/embedded`` without a name.
        observer: Told of progress; ``None``: a live line on a terminal, plain lines in a notebook
            or a log. :class:`archloop.progress.Silent` shows nothing.

    Raises:
        ConfigError: The run began with another configuration, or this one cannot be run here.
        RunLockedError: Another process is working on it.
    """
    name = config if isinstance(config, str) else "embedded"
    if isinstance(config, str):
        config = load_config(config)
    root = Path("runs") / Path(name).stem if run_dir is None else Path(run_dir)
    if observer is not None:
        return run_loop(config, root, observer)
    with open_screen() as screen:
        return run_loop(config, root, screen)
