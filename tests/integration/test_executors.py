"""The local executor over a real sandbox: results as they come, and a quick end."""

from __future__ import annotations

import queue
import time

import psutil
import pytest

from archloop.config import ProtocolConfig, SandboxConfig
from archloop.evaluation.executors import Finished, build_executor
from archloop.sandbox import Sandbox, why_not
from archloop.types import Outcome, TaskData
from conftest import network

LIMITS = SandboxConfig(
    isolation="confined" if why_not("confined") is None else "process",
    workers=2,
    build_seconds=20,
    train_seconds=300,
)
PROTOCOL = ProtocolConfig(batch_size=16, lr=0.05, augmentation="none")
ENDLESS = network(learn="import time; time.sleep(600)")


def test_results_come_in_completion_order_while_more_are_submitted(blobs: TaskData) -> None:
    results: queue.Queue[tuple[str, Finished]] = queue.Queue()
    slow = network(learn="import time; time.sleep(3)")
    with (
        Sandbox(LIMITS, task=blobs, protocol=PROTOCOL) as sandbox,
        build_executor(sandbox, LIMITS) as executor,
    ):

        def submit(name: str, code: str) -> None:
            executor.submit(
                code, seed=3, max_params=None, on_done=lambda done: results.put((name, done))
            )

        submit("slow", slow)
        submit("first", network())
        assert results.get(timeout=60)[0] == "first"
        submit("broken", "import nothing_like_it")
        name, done = results.get(timeout=60)
        assert (name, done.verdict().outcome) == ("broken", Outcome.IMPORT_ERROR)
        name, done = results.get(timeout=60)
        assert (name, done.verdict().outcome) == ("slow", Outcome.VALID)


def test_an_error_ends_what_runs(blobs: TaskData) -> None:
    sandbox = Sandbox(LIMITS, task=blobs, protocol=PROTOCOL)
    server = psutil.Process(sandbox.server_pid)
    done: list[Finished] = []
    with pytest.raises(KeyboardInterrupt), sandbox, build_executor(sandbox, LIMITS) as executor:
        for _ in range(5):
            executor.submit(ENDLESS, seed=3, max_params=None, on_done=done.append)
        while len(server.children()) < 2:
            time.sleep(0.01)
        running = server.children()
        started = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - started < 20
    assert len(done) == 2
    assert all(isinstance(d.result, Exception) for d in done)
    assert not any(p.is_running() for p in [server, *running])


def test_a_fault_of_the_harness_is_raised_to_the_reader(blobs: TaskData) -> None:
    done: queue.Queue[Finished] = queue.Queue()
    with (
        Sandbox(LIMITS) as without_task,
        build_executor(without_task, LIMITS) as executor,
    ):
        executor.submit(network(), seed=3, max_params=None, on_done=done.put)
        finished = done.get(timeout=60)
    with pytest.raises(Exception, match="no task"):
        finished.verdict()
