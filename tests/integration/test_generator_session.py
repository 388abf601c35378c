"""One process for a run's completions: it stays, changes its adapter, is released and dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from archloop.code.chat import render_code
from archloop.config import RunConfig, resolve
from archloop.errors import ArchloopError, CapReachedError, UsageError
from archloop.llm.generation.session import GeneratorSession, Sampled
from archloop.llm.spending import Spent
from archloop.store.run_dir import RunDir
from archloop.store.store import Store
from archloop.types import Completion, Request
from remote_parts import loop_config, request
from scripted_server import Reply, chat, scripted

N = 6


@pytest.fixture
def replay(tmp_path: Path) -> RunConfig:
    """A configuration that repeats two cycles; each text says where it is from."""
    with Store(RunDir(tmp_path).database) as store:
        asked = [Request(c, i, 1, "digits", (), 0.0) for c in (1, 2) for i in range(N)]
        store.add_requests(asked)
        store.add_completions(
            [Completion(r.cycle, r.index, f"{r.cycle} {r.index}", 1, "stop") for r in asked]
        )
    return resolve({"generation": {"engine": "replay", "replay_from": str(tmp_path)}})


def batches(cycle: int) -> list[list[Request]]:
    asked = [Request(cycle, i, 1, "digits", (), 0.0) for i in range(N)]
    return [asked[:4], asked[4:]]


def process_of(session: GeneratorSession) -> psutil.Process:
    assert session._worker is not None
    return psutil.Process(session._worker._process.pid)


def is_gone(process: psutil.Process) -> bool:
    for _ in range(50):
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def texts(found: Iterator[Sampled]) -> list[str]:
    return [sampled.completion.text for sampled in found if sampled.completion]


def test_one_process_answers_until_it_is_released(replay: RunConfig) -> None:
    session = GeneratorSession(replay)
    assert session.resident_bytes() is None, "nothing is started before it is asked"
    assert texts(session.generate(batches(1), None)) == [f"1 {i}" for i in range(N)]
    first = process_of(session)
    assert (session.resident_bytes() or 0) > 10 * 2**20
    assert texts(session.generate(batches(2), None)) == [f"2 {i}" for i in range(N)]
    assert process_of(session) == first
    session.release()
    assert is_gone(first)
    assert session.resident_bytes() is None
    assert len(texts(session.generate(batches(1), None))) == N
    second = process_of(session)
    assert second != first
    session.close()
    assert is_gone(second)


def test_closing_the_iterator_early_ends_the_process(replay: RunConfig) -> None:
    with GeneratorSession(replay) as session:
        found = session.generate(batches(1), None)
        next(found)
        process = process_of(session)
        found.close()  # type: ignore[attr-defined]
        assert is_gone(process)
        assert len(texts(session.generate(batches(1), None))) == N


def test_closing_the_session_does_not_wait_for_what_is_under_way() -> None:
    with scripted(lambda _n, _body: chat("x", delay=0.5)) as server:
        config = loop_config(server.url, openai={"concurrency": 1})
        session = GeneratorSession(config)
        found = session.generate([[request(i, i) for i in range(30)]], None)
        next(found)
        process, asked = process_of(session), len(server.bodies)
        session.close()
        assert is_gone(process)
        assert len(server.bodies) <= asked + 1


def test_a_failure_is_raised_as_its_kind_and_the_next_use_starts_anew(replay: RunConfig) -> None:
    with GeneratorSession(replay) as session:
        with pytest.raises(UsageError, match="no completion 0 stored"):
            list(session.generate(batches(3), None))
        assert session.resident_bytes() is None
        assert len(texts(session.generate(batches(1), None))) == N


def test_a_process_that_is_killed_is_one_line(replay: RunConfig) -> None:
    with GeneratorSession(replay) as session:
        list(session.generate(batches(1), None))
        process_of(session).kill()
        with pytest.raises(ArchloopError, match="ended with code -9"):
            list(session.generate(batches(1), None))


def test_what_is_spent_goes_on_and_is_told_before_a_cap_ends_it() -> None:
    def answer(_n: int, body: dict[str, Any]) -> Reply:
        return chat(render_code(f"{body['seed']}"), prompt_tokens=10, tokens=10)

    with scripted(answer) as server:
        config = loop_config(server.url, openai={"cap_tokens": 400, "concurrency": 1})
        with GeneratorSession(config) as session:
            before = Spent(3, 60, 60)
            found = list(session.generate([[request(0, 1)]], None, before))
            assert [s.spent for s in found] == [Spent(4, 70, 70)] * 2
            assert [s.completion is None for s in found] == [False, True]
            seen: list[Sampled] = []
            with pytest.raises(CapReachedError, match="cap_tokens"):
                for sampled in session.generate(
                    [[request(i, i) for i in range(30)]], None, Spent(3, 60, 60)
                ):
                    seen.append(sampled)
    last = seen[-1]
    assert last.completion is None
    assert last.spent is not None and 290 < last.spent.tokens <= 400
