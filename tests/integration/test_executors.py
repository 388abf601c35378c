"""Executors: the local one over real sandboxes, and another one behind the same Protocol."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from types import TracebackType
from typing import Any, Self

import psutil
import pytest

from archloop.config import ProtocolConfig, SandboxConfig, load_config
from archloop.config.derived import derive_seed
from archloop.errors import SandboxError
from archloop.evaluation.alone import Source, evaluate_many
from archloop.evaluation.executor import (
    Evaluate,
    Evaluated,
    Executor,
    Job,
    Probe,
    Trace,
    build_executor,
    in_order,
)
from archloop.evaluation.jobs import T
from archloop.evaluation.local import LocalExecutor, worker_count
from archloop.evaluation.probing import seed_prober
from archloop.machine.hardware import usable_cores
from archloop.progress import Silent
from archloop.sandbox import why_not
from archloop.types import Isolation, Outcome, TaskData, Verdict
from conftest import network

LIMITS = SandboxConfig(
    isolation="confined" if why_not("confined") is None else "process",
    workers=2,
    build_seconds=20,
    train_seconds=300,
)
PROTOCOL = ProtocolConfig(batch_size=16, lr=0.05, augmentation="none")
MISSING = network(init="n.f()", top="import nothing_like_it as n")
ENDLESS = network(learn="import time; time.sleep(600)")


def test_results_come_in_completion_order_while_more_are_submitted(blobs: TaskData) -> None:
    with build_executor(LIMITS, blobs, PROTOCOL) as executor:
        slow = executor.submit(Evaluate(network(learn="import time; time.sleep(3)"), seed=3))
        first = executor.submit(Evaluate(network(), seed=3))
        assert wait([slow, first], timeout=60, return_when=FIRST_COMPLETED).done == {first}
        broken = executor.submit(Evaluate(MISSING, seed=3))
        assert wait([slow, broken], timeout=60, return_when=FIRST_COMPLETED).done == {broken}
        assert broken.result().verdict.outcome is Outcome.IMPORT_ERROR
        evaluated = slow.result(timeout=60)
    assert evaluated.verdict.outcome is Outcome.VALID
    assert 3 < evaluated.end - evaluated.begin < time.time() - evaluated.begin


def test_an_error_ends_what_runs_and_drops_what_waits(blobs: TaskData) -> None:
    executor = LocalExecutor(LIMITS, {"blobs": blobs}, PROTOCOL)
    with pytest.raises(KeyboardInterrupt), executor:
        futures = [executor.submit(Evaluate(ENDLESS, seed=3)) for _ in range(5)]
        while not (pids := executor.server_pids):
            time.sleep(0.01)
        server = psutil.Process(pids["blobs"])
        while len(server.children()) < 2:
            time.sleep(0.01)
        running = server.children()
        started = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - started < 20
    assert not any(p.is_running() for p in [server, *running])
    assert all(isinstance(f.exception(), SandboxError) for f in futures[:2])
    assert all(f.cancelled() for f in futures[2:])


def test_without_an_error_what_runs_is_waited_for_and_what_waits_is_dropped(
    blobs: TaskData,
) -> None:
    limits = LIMITS.model_copy(update={"workers": 1})
    with build_executor(limits, blobs, PROTOCOL) as executor:
        futures = [executor.submit(Evaluate(network(), seed=3)) for _ in range(3)]
        while not futures[0].running():
            time.sleep(0.001)
    assert futures[0].result().verdict.outcome is Outcome.VALID
    with pytest.raises(CancelledError):
        futures[2].result()


@pytest.mark.parametrize(
    ("task", "what"),
    [(None, "without a task.*none"), ("cifar10", "no task 'cifar10'.*none")],
)
def test_a_fault_of_the_harness_is_raised_to_the_reader(task: str | None, what: str) -> None:
    with build_executor(LIMITS) as executor:
        future = executor.submit(Evaluate(network(), seed=3, task=task))
        with pytest.raises(SandboxError, match=what):
            future.result(timeout=60)


def test_each_task_has_a_sandbox_of_its_own_that_is_started_once(blobs: TaskData) -> None:
    tasks = {"blobs": blobs, "again": blobs}
    with LocalExecutor(LIMITS, tasks, PROTOCOL) as executor:
        assert executor.server_pids == {}
        jobs = [Evaluate(network(), seed=3, task=task) for task in ("blobs", "again", "blobs")]
        scores = [e.verdict.first_epoch_accuracy for e in in_order(executor, jobs)]
        assert scores[0] is not None
        assert len(set(scores)) == 1
        servers = executor.server_pids
        assert servers.keys() == tasks.keys()
        assert servers["blobs"] != servers["again"]
        traced = executor.submit(Trace(network(), (1, 8, 8), 4)).result()
        assert traced.graph is not None
        assert executor.submit(Probe(network(), (1, 8, 8), 4)).result().outcome is Outcome.VALID
        list(in_order(executor, jobs[:2]))
        after = executor.server_pids
        assert after == servers | {None: after[None]}
        with pytest.raises(SandboxError, match="without a task; this executor has: blobs, again"):
            executor.submit(Evaluate(network(), seed=3)).result()
    assert not any(psutil.pid_exists(pid) for pid in after.values())


def test_seeds_are_built_in_the_order_in_which_they_come() -> None:
    codes = [
        network(init="import time; time.sleep(1)"),
        MISSING,
        network(),
    ]
    with build_executor(LIMITS) as executor:
        verdicts = seed_prober(executor, Silent())(iter(codes))
    assert [v.outcome.value for v in verdicts] == ["valid", "import_error", "valid"]


def test_one_rule_says_how_many_work_at_a_time() -> None:
    assert worker_count(SandboxConfig()) == usable_cores()
    assert worker_count(SandboxConfig(workers=7, threads=2)) == 7
    assert worker_count(SandboxConfig(threads=1024)) == 1, "never none"


class Table:
    """An executor without sandboxes and threads: it looks verdicts up, when they are asked for."""

    isolation: Isolation = "process"

    def __init__(self, verdict_of: Callable[[Evaluate], Verdict]) -> None:
        self._verdict_of = verdict_of
        self.jobs: list[Evaluate] = []

    def submit(self, job: Job[T]) -> Future[T]:
        future: Future[Any] = Future()
        assert isinstance(job, Evaluate)
        self.jobs.append(job)
        try:
            future.set_result(Evaluated(self._verdict_of(job), 1.0, 2.0))
        except OSError as fault:
            future.set_exception(fault)
        return future

    def __enter__(self) -> Self:
        raise AssertionError("it was open before")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        raise AssertionError("whoever opened it closes it")


def test_networks_are_evaluated_by_any_executor(blobs: TaskData) -> None:
    good, bad, refused = (
        network(),
        network(init="self.bad = 1"),
        network("os.getcwd()", top="import os"),
    )

    def verdict_of(job: Evaluate) -> Verdict:
        if job.code == bad:
            return Verdict(Outcome.TIMEOUT, "too slow")
        first = derive_seed(config.seed, "evaluate", 0)
        return Verdict(Outcome.VALID, None, 10, 0.75 if job.seed == first else 0.25, 1.0)

    config = load_config("embedded", ["task.name=digits"])
    table = Table(verdict_of)
    executor: Executor = table
    sources = [Source("good", good), Source("bad", bad), Source("refused", refused)]
    rows = evaluate_many(sources, config, blobs, seeds=2, executor=executor)
    found = {row.id: row for row in rows}
    assert found["good"].outcome is Outcome.VALID
    assert found["good"].accuracies == (0.75, 0.25), "in the order of the seeds"
    assert found["good"].isolation == "process"
    assert found["bad"].outcome is Outcome.TIMEOUT
    assert found["refused"].outcome is Outcome.FORBIDDEN_CODE
    assert [job.code for job in table.jobs] == [good, good, bad, bad], "what is refused never runs"
    assert {job.task for job in table.jobs} == {blobs.info.name}


def test_a_fault_of_any_executor_reaches_whoever_evaluates(blobs: TaskData) -> None:
    def lost(_: Evaluate) -> Verdict:
        raise OSError("the machine is gone")

    config = load_config("embedded", ["task.name=digits"])
    with pytest.raises(OSError, match="is gone"):
        list(evaluate_many([Source("a", network())], config, blobs, executor=Table(lost)))
