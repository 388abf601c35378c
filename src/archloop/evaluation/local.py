"""Evaluation on this machine: worker threads over one sandbox for each task."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from archloop.code.noise import without_noise
from archloop.config import ProtocolConfig, SandboxConfig
from archloop.errors import SandboxError
from archloop.evaluation.jobs import Evaluate, Evaluated, Job, Probe, T, Trace, Traced
from archloop.machine.hardware import usable_cores
from archloop.sandbox import Sandbox, new_key, require
from archloop.types import Isolation, TaskData


def worker_count(config: SandboxConfig) -> int:
    """Networks that are worked on at the same time, whatever is done with them.

    ``sandbox.workers``, or as many as have ``sandbox.threads`` cores each: a network keeps its
    cores busy from its fork to its verdict, so more of them only wait for each other.
    """
    return config.workers or max(1, usable_cores() // config.threads)


class LocalExecutor:
    """An executor (:class:`archloop.evaluation.executor.Executor`) of threads on this machine.

    It has a sandbox for each task, whose fork server holds the images, and one without images that
    builds and traces under the default protocol, so that graphs are the same for every run. Each is
    started when the first job needs it and ends with the executor.

    Args:
        config: Limits, isolation level, and how many networks at a time.
        tasks: What networks are trained on, by name.
        protocol: How they are trained.
        key: The secret of their measurement; ``None``: a new one.

    Raises:
        IsolationError: The isolation level is not available on this machine.
    """

    def __init__(
        self,
        config: SandboxConfig,
        tasks: Mapping[str, TaskData],
        protocol: ProtocolConfig | None = None,
        key: bytes | None = None,
    ) -> None:
        require(config.isolation)
        self._config, self._tasks, self._protocol = config, dict(tasks), protocol
        self._key = key or new_key()
        self._pool = ThreadPoolExecutor(worker_count(config), thread_name_prefix="candidate")
        self._lock = threading.Lock()
        self._sandboxes: dict[str | None, Sandbox] = {}
        """By task; ``None`` is the one without images."""
        self._closed = False

    @property
    def isolation(self) -> Isolation:
        """The isolation level of every network."""
        return self._config.isolation

    @property
    def server_pids(self) -> dict[str | None, int]:
        """Process ids of the fork servers in use, by task; ``None`` is the one without images."""
        with self._lock:
            return {task: sandbox.server_pid for task, sandbox in self._sandboxes.items()}

    def submit(self, job: Job[T]) -> Future[T]:
        """Queue a job; a fault of the harness is the exception of its future."""
        future: Future[T] = self._pool.submit(self._work, job)
        return future

    def _work(self, job: Job[Any]) -> Any:
        """Do a job; networks run without the noise that they were judged without."""
        match job:
            case Evaluate():
                sandbox = self._sandbox(self._task_of(job))
                code, begin = without_noise(job.code), time.time()
                verdict = sandbox.evaluate(code, seed=job.seed, max_params=job.max_params)
                return Evaluated(verdict, begin, time.time())
            case Probe():
                return self._sandbox(None).probe(
                    without_noise(job.code),
                    shape=job.shape,
                    classes=job.classes,
                    max_params=job.max_params,
                    meta=job.meta,
                )
            case Trace():
                sandbox = self._sandbox(None)
                code = without_noise(job.code)
                verdict, found = sandbox.sketch(code, shape=job.shape, classes=job.classes)
                return Traced(verdict, None if found is None else found.graph)
            case _:
                raise SandboxError(f"no such job: {type(job).__name__}")

    def _task_of(self, job: Evaluate) -> str:
        """The name of its task.

        Raises:
            SandboxError: The executor has no such task.
        """
        if job.task is None and len(self._tasks) == 1:
            return next(iter(self._tasks))
        if job.task is None or job.task not in self._tasks:
            asked = "a job without a task" if job.task is None else f"no task {job.task!r}"
            raise SandboxError(f"{asked}; this executor has: {', '.join(self._tasks) or 'none'}")
        return job.task

    def _sandbox(self, task: str | None) -> Sandbox:
        """The sandbox of a task, started on first use.

        Raises:
            SandboxError: The executor was closed, or the fork server did not start.
        """
        with self._lock:
            if self._closed:
                raise SandboxError("the executor was closed while a network ran")
            if task not in self._sandboxes:
                images = None if task is None else self._tasks[task]
                protocol = None if task is None else self._protocol
                self._sandboxes[task] = Sandbox(
                    self._config, task=images, protocol=protocol, key=self._key
                )
            return self._sandboxes[task]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop what has not begun; wait for what has, or end it if an error is on its way."""
        # With an error nobody waits for the results any more, and an epoch may take half an hour.
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        with self._lock:
            self._closed = True
            for sandbox in self._sandboxes.values():
                sandbox.close()
        self._pool.shutdown(wait=True)
