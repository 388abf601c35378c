"""Would-be champions, trained again with other seeds before anything is decided.

Each result is stored as a measure as soon as it is there, so an interrupted run goes on with what
is missing.
"""

from __future__ import annotations

from concurrent.futures import as_completed

from archloop.evaluation.executor import Evaluate
from archloop.loop.context import RunContext
from archloop.loop.corpora import history_of
from archloop.progress import Progress


def train_again(run: RunContext, cycle: int) -> None:
    """Train what the strategy asks for; a training that fails counts as an accuracy of zero."""
    asked = run.strategy.again(history_of(run), cycle)
    owed = [repeat for repeat in asked if repeat.measure not in repeat.candidate.measures]
    max_params = run.config.task.max_params
    running = {
        run.executor.submit(Evaluate(r.candidate.code or "", seed=r.seed, max_params=max_params)): r
        for r in owed
    }
    try:
        for done, future in enumerate(as_completed(running), len(asked) - len(owed)):
            repeat, verdict = running[future], future.result().verdict
            _tell(run, done, len(asked))
            accuracy = verdict.first_epoch_accuracy or 0.0
            run.store.add_measure(cycle, repeat.candidate.index, repeat.measure, accuracy)
    finally:
        for future in running:
            future.cancel()


def _tell(run: RunContext, done: int, total: int) -> None:
    run.watch.update(Progress("champions", done=done, total=total, unit="trainings"))
