"""Evaluation by itself: networks in, one row each out, with a run's checks and protocol."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from archloop.chat import code_sha256
from archloop.code_policy import check
from archloop.config import RunConfig, load_config, resolve
from archloop.context import derive_seed, protocol_digest
from archloop.executors import Finished, build_executor
from archloop.sandbox import Sandbox
from archloop.tasks import load_task
from archloop.types import Candidate, TaskData, Verdict


@dataclass(frozen=True)
class Source:
    """A network to evaluate."""

    id: str
    code: str


def evaluate(
    code: str,
    task: str = "cifar10",
    *,
    config: RunConfig | None = None,
    task_data: TaskData | None = None,
) -> Candidate:
    """Check, build and train one network for one epoch in the sandbox.

    Args:
        code: Python source that keeps the candidate contract.
        task: A task name, a Hugging Face dataset id or a folder of class folders.
        config: Protocol, budget and limits; ``task`` is not used then.
        task_data: The images, if loaded before.

    Returns:
        The row; ``outcome`` is ``valid`` or says where the network failed, with its ``error`` line.
    """
    if config is None:
        tree = load_config("embedded").model_dump(mode="json")
        config = resolve({**tree, "task": {**tree["task"], "name": task}})
    return next(evaluate_many([Source("network", code)], config, task_data))


def evaluate_many(
    sources: Sequence[Source], config: RunConfig, task_data: TaskData | None = None
) -> Iterator[Candidate]:
    """Evaluate networks, several at a time; rows come in completion order."""
    task = task_data or load_task(config.task, config.protocol)
    digest = protocol_digest(config, task)
    results: queue.Queue[tuple[int, Finished]] = queue.Queue()
    with (
        Sandbox(config.sandbox, task=task, protocol=config.protocol) as sandbox,
        build_executor(sandbox, config.sandbox) as executor,
    ):
        shared: dict[str, Any] = {"isolation": sandbox.isolation, "protocol": digest}
        for index, source in enumerate(sources):
            fault = check(source.code)
            if fault is not None:
                results.put((index, Finished(fault)))
                continue
            executor.submit(
                source.code,
                seed=derive_seed(config.seed, "evaluate", 0, index),
                max_params=config.task.max_params,
                on_done=lambda done, i=index: results.put((i, done)),  # type: ignore[misc]
            )
        for _ in sources:
            index, finished = results.get()
            yield _row(index, sources[index], finished.verdict(), shared)


def _row(index: int, source: Source, verdict: Verdict, shared: dict[str, Any]) -> Candidate:
    return Candidate(
        id=source.id,
        cycle=0,
        index=index,
        outcome=verdict.outcome,
        error=verdict.error,
        code=source.code,
        code_sha256=code_sha256(source.code),
        n_params=verdict.n_params,
        first_epoch_accuracy=verdict.first_epoch_accuracy,
        train_seconds=verdict.train_seconds,
        **shared,
    )
