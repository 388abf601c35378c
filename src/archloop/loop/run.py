"""The loop: the whole of a cycle on one screen.

learn -> ask -> generate and evaluate (streaming) -> decide -> commit. What is asked for, accepted
and learnt is the strategy's (:mod:`archloop.search.strategy`); the steps are in files of their own.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from archloop.config import RunConfig
from archloop.loop.commit import commit_cycle
from archloop.loop.context import RunContext, open_context
from archloop.loop.corpora import corpus_of, history_of
from archloop.loop.learn import adapter_of
from archloop.loop.pipeline import generate_and_evaluate
from archloop.loop.repeats import train_again
from archloop.progress import Observer, Progress, Silent
from archloop.store.run_dir import FINISHED, Run, RunDir


def run(
    config: RunConfig | None = None,
    run_dir: str | Path = "runs/embedded",
    observer: Observer | None = None,
) -> Run:
    """Start a run, or resume the one in ``run_dir``; returns it finished and open for reading.

    Args:
        config: ``None``: the configuration the run directory began with.
        run_dir: Where everything of the run is kept.
        observer: Told of progress.

    Raises:
        ConfigError: The run began with another configuration, or this one cannot be run here.
        RunLockedError: Another process is working on it.
    """
    root = Path(run_dir)
    with (
        RunDir(root).lock(),
        open_context(config, root, observer or Silent()) as context,
    ):
        if context.extends or not context.is_finished:
            run_cycles(context)
    return Run.open(root)


def run_cycles(run: RunContext) -> None:
    """All cycles that are not committed yet, then the end of the run."""
    run.begin()
    for cycle in run.owed_cycles():
        run.watch.begin_cycle(cycle)
        adapter = adapter_of(run, cycle)  # learn
        requests = run.requests(cycle)  # ask
        evaluated = generate_and_evaluate(run, cycle, adapter, requests)
        train_again(run, cycle)
        run.watch.update(Progress("select"))
        decided = run.strategy.decide(history_of(run), cycle)
        commit_cycle(run, cycle, adapter, evaluated, decided)
    finish(run)


def finish(run: RunContext) -> None:
    """After the last cycle: the corpus with everything accepted and, if configured, its adapter."""
    cycle = run.config.loop.cycles + 1
    run.watch.begin_cycle(cycle)
    run.watch.update(Progress("corpus"))
    run.watch.corpus(len(corpus_of(run, cycle)))
    if run.config.loop.final_finetune and run.config.finetune.enabled:
        adapter_of(run, cycle)
    run.store.set_meta(FINISHED, datetime.now(UTC).isoformat(timespec="seconds"))
    run.watch.close()
