"""Evaluation by itself: networks in, one row each out, with a run's checks and protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from archloop.code.chat import code_sha256
from archloop.code.hints import hint
from archloop.code.policy import check, unreadable
from archloop.config import RunConfig, load_config
from archloop.config.derived import derive_seed
from archloop.errors import UsageError
from archloop.evaluation.executor import Evaluate, Evaluated, Executor, build_executor
from archloop.stats import share_interval
from archloop.tasks import load_task
from archloop.tasks.protocol import protocol_digest
from archloop.types import Candidate, TaskData, Verdict


@dataclass(frozen=True)
class Source:
    """A network to evaluate."""

    id: str
    code: str
    fault: str | None = None
    """Why the file cannot be read as source."""


@dataclass(frozen=True)
class Evaluation(Candidate):
    """A candidate evaluated by itself: its first-epoch accuracy is the mean over the seeds."""

    accuracies: tuple[float, ...] = ()
    """One for each seed."""
    accuracy_interval: tuple[float, float] | None = None
    """Student-t 95 % interval of the mean, cut to 0..1; with two seeds or more."""
    hint: str | None = None
    """What its author should change."""
    output: str | None = None
    """The last of what it printed."""


def evaluate(
    code: str,
    task: str = "cifar10",
    *,
    seeds: int = 1,
    config: RunConfig | None = None,
    task_data: TaskData | None = None,
) -> Evaluation:
    """Check, build and train one network for one epoch in the sandbox.

    Args:
        code: Python source that keeps the candidate contract.
        task: A task name, a Hugging Face dataset id, or a file or folder of images.
        seeds: Trainings with different seeds.
        config: Protocol, budget and limits; ``task`` is not used then.
        task_data: The images, if loaded before.

    Returns:
        The row; ``outcome`` is ``valid`` or says where the network failed, with its ``error`` line.
    """
    config = config or load_config("embedded", [f"task.name={task}"])
    return next(evaluate_many([Source("network", code)], config, task_data, seeds=seeds))


def evaluate_many(
    sources: Sequence[Source],
    config: RunConfig,
    task_data: TaskData | None = None,
    *,
    seeds: int = 1,
    executor: Executor | None = None,
) -> Iterator[Evaluation]:
    """Evaluate networks, several at a time; rows come in completion order.

    Seeds depend on nothing but ``config.seed``, so a network's row is the same in any company.

    Args:
        sources: The networks.
        config: Task, protocol, budget and limits.
        task_data: The images, if loaded before.
        seeds: Trainings of each network with different seeds.
        executor: Trains them, and has the task by its name; ``None``: one is opened.

    Raises:
        UsageError: ``seeds`` is less than one.
    """
    if seeds < 1:
        raise UsageError(f"seeds: {seeds}; expected 1 or more")
    task = task_data or load_task(config.task, config.protocol)
    protocol = protocol_digest(config, task)
    with ExitStack() as stack:
        trainer = executor or stack.enter_context(
            build_executor(config.sandbox, task, config.protocol)
        )
        shared = {
            "isolation": trainer.isolation,
            "protocol": protocol,
            "training": config.protocol.training,
        }
        faults = {
            i: fault
            for i, s in enumerate(sources)
            if (fault := unreadable(s.fault) or check(s.code)) is not None
        }
        submitted: dict[Future[Evaluated], tuple[int, int]] = {}
        found: dict[int, dict[int, Verdict]] = {}
        try:
            for index, source in enumerate(sources):
                for n in range(0 if index in faults else seeds):
                    seed = derive_seed(config.seed, "evaluate", n)
                    job = Evaluate(source.code, seed, config.task.max_params, task.info.name)
                    submitted[trainer.submit(job)] = index, n
            for index, fault in faults.items():
                yield _row(index, sources[index], [fault], shared)
            for future in as_completed(submitted):
                index, n = submitted[future]
                verdicts = found.setdefault(index, {})
                verdicts[n] = future.result().verdict
                if len(verdicts) == seeds:
                    yield _row(index, sources[index], [verdicts[k] for k in range(seeds)], shared)
        finally:
            for future in submitted:
                future.cancel()


def _measures(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The measures of the graph, and the most work of all trainings."""
    profiles = [v.graph.profile for v in verdicts if v.graph and v.graph.profile]
    work = [v.work for v in verdicts if v.work is not None]
    return (profiles[0] if profiles else {}) | ({"work": max(work)} if work else {})


def _row(
    index: int, source: Source, verdicts: Sequence[Verdict], shared: dict[str, Any]
) -> Evaluation:
    """One network's verdicts, in the order of the seeds; the first failure is the outcome."""
    verdict = next((v for v in verdicts if not v.outcome.is_valid), verdicts[0])
    accuracies = [v.first_epoch_accuracy for v in verdicts]
    scores = tuple(a for a in accuracies if a is not None) if verdict.outcome.is_valid else ()
    fixed = [v.harness_accuracy for v in verdicts if v.harness_accuracy is not None]
    found = tuple(dict.fromkeys(flag for v in verdicts for flag in v.flags))
    times = [v.train_seconds for v in verdicts if v.train_seconds is not None]
    return Evaluation(
        id=source.id,
        cycle=None,
        index=index,
        outcome=verdict.outcome,
        error=verdict.error,
        code=source.code,
        code_sha256=code_sha256(source.code),
        n_params=verdict.n_params,
        first_epoch_accuracy=round(fmean(scores), 6) if scores else None,
        train_seconds=round(fmean(times), 3) if scores else None,
        harness_accuracy=round(fmean(fixed), 6) if fixed and scores else None,
        flags=found,
        accuracies=scores,
        accuracy_interval=share_interval(scores),
        hint=hint(verdict.outcome, verdict.error, found, source.code),
        output=verdict.output,
        graph=verdict.graph,
        measures=_measures(verdicts),
        **shared,
    )
