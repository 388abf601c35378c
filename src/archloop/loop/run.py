"""The loop: the whole of a cycle on one screen.

1. fine-tune -> adapter   2. generate   3. extract and check   4. probe   5. train   6. novelty
7. select   8. commit, in one transaction. The stages are in :mod:`archloop.loop.stages`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from archloop.config import RunConfig
from archloop.loop import stages
from archloop.loop.context import RunContext, open_context
from archloop.progress import Observer, Silent
from archloop.store.run_dir import FINISHED, Run, RunDir


def run(
    config: RunConfig | None = None,
    run_dir: str | Path = "runs/embedded",
    observer: Observer | None = None,
) -> Run:
    """Start a run, or go on with the one in ``run_dir``; returns it finished and open for reading.

    Args:
        config: ``None``: the configuration the run directory began with.
        run_dir: Where everything of the run is kept.
        observer: Told of progress.

    Raises:
        ConfigError: The run began with another configuration, or this one cannot be run here.
        RunLockedError: Another process is working on it.
    """
    root = Path(run_dir)
    with RunDir(root).lock():
        context = open_context(config, root, observer or Silent())
        with context.store:
            if context.store.get_meta(FINISHED) is None:
                run_cycles(context)
    return Run.open(root)


def run_cycles(run: RunContext) -> None:
    """All cycles that are not committed yet, then the end of the run."""
    stages.prepare(run)
    run.pin()
    committed = {stats.cycle for stats in run.store.cycles()}
    for cycle in range(1, run.config.loop.cycles + 1):
        if cycle not in committed:
            work = stages.produce(run, cycle)  # 1 to 5
            selected = stages.choose(run, cycle, work.corpus)  # 6, 7
            stats = stages.commit(run, cycle, work, selected)  # 8
            run.observer.message(
                f"cycle {cycle}: {stats.n_gen} candidates, {stats.n_valid} valid, "
                f"{stats.n_accepted} accepted"
            )
    stages.finish(run)
    run.store.set_meta(FINISHED, datetime.now(UTC).isoformat(timespec="seconds"))
