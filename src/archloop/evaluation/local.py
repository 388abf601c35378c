"""Evaluation on this machine: worker threads over one sandbox."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from archloop.config import SandboxConfig
from archloop.evaluation.executor import Finished
from archloop.machine.hardware import usable_cores
from archloop.sandbox import Sandbox
from archloop.types import Verdict


class LocalExecutor:
    """As many candidates at a time as ``sandbox.workers`` says, or as the cores allow."""

    def __init__(self, sandbox: Sandbox, config: SandboxConfig) -> None:
        self._sandbox = sandbox
        workers = config.workers or max(1, usable_cores() // config.threads)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="candidate")

    def submit(
        self, code: str, *, seed: int, max_params: int | None, on_done: Callable[[Finished], None]
    ) -> None:
        """Queue a candidate; see :class:`~archloop.evaluation.executor.Executor`."""

        def work() -> None:
            result: Verdict | BaseException
            begin = time.time()
            try:
                result = self._sandbox.evaluate(code, seed=seed, max_params=max_params)
            except BaseException as fault:  # noqa: BLE001 - raised again by whoever reads the result
                result = fault
            on_done(Finished(result, begin, time.time()))

        self._pool.submit(work)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            # Nobody waits for the results any more, and an epoch may take half an hour.
            self._sandbox.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
