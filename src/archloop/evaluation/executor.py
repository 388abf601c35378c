"""What an executor is: jobs in, futures out; it owns the sandboxes that the jobs run in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Protocol, Self

from archloop.config import ProtocolConfig, SandboxConfig
from archloop.evaluation.jobs import Evaluate, Evaluated, Job, Probe, T, Trace, Traced
from archloop.evaluation.local import LocalExecutor
from archloop.types import Isolation, TaskData

__all__ = [
    "Evaluate",
    "Evaluated",
    "Executor",
    "Job",
    "Probe",
    "Trace",
    "Traced",
    "build_executor",
    "in_order",
]


class Executor(Protocol):
    """Runs jobs, several at a time, in any order; opened once and used for hours."""

    @property
    def isolation(self) -> Isolation:
        """The isolation level of every network."""
        ...

    def submit(self, job: Job[T]) -> Future[T]:
        """Queue a job; a fault of the harness is the exception of its future."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop what has not begun; wait for what has, or end it if an error is on its way."""
        ...


def build_executor(
    config: SandboxConfig,
    tasks: TaskData | Mapping[str, TaskData] | None = None,
    protocol: ProtocolConfig | None = None,
    key: bytes | None = None,
) -> Executor:
    """The executor for this machine.

    Args:
        config: Limits, isolation level, and how many networks at a time.
        tasks: What networks are trained on, by the names in :attr:`Evaluate.task`; without any,
            networks can be built and traced only.
        protocol: How they are trained; required with tasks.
        key: The secret from which the order of validation images and the like are drawn
            (:mod:`archloop.sandbox.host.draws`); ``None``: a new one.

    Raises:
        IsolationError: The isolation level is not available on this machine.
    """
    if isinstance(tasks, TaskData):
        tasks = {tasks.info.name: tasks}
    return LocalExecutor(config, tasks or {}, protocol, key)


def in_order(executor: Executor, jobs: Iterable[Job[T]]) -> Iterator[T]:
    """Submit each job as it comes; results in the order of the jobs.

    What has not begun when the caller stops reading is dropped.
    """
    futures: list[Future[T]] = []
    try:
        futures.extend(executor.submit(job) for job in jobs)
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()
