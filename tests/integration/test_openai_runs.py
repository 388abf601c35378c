"""Runs whose LLM is on a server: a real one with the embedded LLM, caps, resuming, the key.

The real server is transformers' own, in a thread of this process.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from archloop.config import LLMConfig, RunConfig, SandboxConfig, resolve
from archloop.errors import CapReachedError, ConfigError, UsageError
from archloop.llm.generation import build_generator
from archloop.llm.models import resolve_model
from archloop.loop import pipeline
from archloop.loop.run import run
from archloop.progress import Progress, Silent
from archloop.report import spending_of, status_json, write_report
from archloop.sandbox import Sandbox
from archloop.store.run_dir import SPENT, Run
from conftest import network
from remote_parts import (
    KEY,
    VARIABLE,
    by_index,
    engine,
    good_answer,
    loop_config,
    request,
    requests,
)
from scripted_server import Reply, ScriptedServer, scripted


@dataclass(frozen=True)
class RealServer:
    url: str
    model: str
    folder: Path


@pytest.fixture(scope="module")
def real() -> Iterator[RealServer]:
    """transformers' server with the embedded LLM in float32."""
    from transformers.cli.serve import Serve

    folder = resolve_model(LLMConfig())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = Serve(
        force_model=str(folder),
        device="cpu",
        dtype="float32",
        host="127.0.0.1",
        port=port,
        log_level="error",
        non_blocking=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not serve.server.started:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield RealServer(f"http://127.0.0.1:{port}/v1", str(folder), folder)
    finally:
        serve.kill_server()


SAMPLING = {
    "generation_config": json.dumps({"do_sample": True, "eos_token_id": 2, "pad_token_id": 2})
}
"""What this server wants to be told before it samples."""


@pytest.mark.llm
def test_the_real_server_writes_what_the_llm_writes(real: RealServer) -> None:
    """Greedy text, token count and finish reason are those of the transformers engine."""
    generator, budget = engine(real.url, real.model, concurrency=1)
    short = request(0, 1, temperature=0.0)
    greeting = request(1, 1, ({"role": "user", "content": "Hi"},), temperature=0.0)
    (cut,) = generator.generate([short])
    (stopped,) = generator.generate([greeting])
    generator.close()
    decoding = {"engine": "transformers", "max_new_tokens": 12}
    config = resolve({"generation": decoding, "llm": {"dtype": "float32"}})
    local = build_generator(config, model_dir=real.folder)
    local.use(None)
    assert list(local.generate([short])) == [cut]
    assert list(local.generate([greeting])) == [stopped]
    assert (cut.finish_reason, cut.n_tokens) == ("length", 12)
    assert (stopped.finish_reason, stopped.text[:5]) == ("stop", "Hello")
    assert budget.spent.answers == 2
    assert budget.spent.completion_tokens == 12 + stopped.n_tokens
    assert budget.spent.prompt_tokens > 40


@pytest.mark.llm
def test_the_real_server_samples_by_seed_and_streams(real: RealServer) -> None:
    settings = {"concurrency": 1, "extra_body": SAMPLING}
    generator, budget = engine(real.url, real.model, **settings)
    answers = generator.generate(requests(3, 2.0))
    first = next(answers)
    assert budget.spent.answers == 1, "the others are not waited for"
    texts = by_index([first, *answers])
    assert [text.index for text in texts] == [0, 1, 2]
    assert len({text.text for text in texts}) == 3
    assert list(generator.generate([requests(3, 2.0)[1]])) == [texts[1]]
    generator.close()


@pytest.mark.llm
def test_the_real_server_refuses_in_one_line(real: RealServer) -> None:
    refused, _ = engine(real.url, real.model, decoding={"top_k": 5})
    with pytest.raises(UsageError, match="refuses the request: .*top_k"):
        next(refused.generate(requests(1)))
    unknown, _ = engine(real.url, "no-such-model")
    with pytest.raises(UsageError, match="pinned to"):
        next(unknown.generate(requests(1)))


def test_answers_that_came_before_an_interruption_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        time.sleep(3.0)
        raise KeyboardInterrupt

    with scripted(good_answer) as server:
        monkeypatch.setattr(pipeline.Pipeline, "_judge", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(loop_config(server.url, completions=3), tmp_path / "run")
    with Run.open(tmp_path / "run") as left:
        assert len(left.store.completions(1)) == 3
        assert left.store.get_meta(SPENT)["answers"] == 3


@pytest.mark.llm
def test_a_whole_run_against_the_real_server(real: RealServer, tmp_path: Path) -> None:
    config = loop_config(real.url, model=real.model, max_new_tokens=8, completions=3)
    with run(config, tmp_path / "run") as finished:
        (cycle,) = finished.cycles()
        assert (cycle.n_gen, cycle.adapter) == (3, "none")
        completions = finished.store.completions(1)
        found = spending_of(finished)
    assert found is not None
    spent = found.spent
    assert spent.answers == 3
    assert spent.completion_tokens == sum(c.n_tokens for c in completions) == cycle.n_tokens
    assert not (tmp_path / "run" / "adapters").exists()


def test_a_run_stops_at_its_cap_and_goes_on_when_it_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing paid for is lost or paid twice; the key is nowhere in the run directory."""
    monkeypatch.setenv(VARIABLE, KEY)
    root = tmp_path / "run"
    settings = {"api_key_env": VARIABLE, "input_price": 1.0, "output_price": 2.0}

    def config(url: str, cap: float) -> RunConfig:
        return loop_config(url, openai=settings | {"cap_cost": cap})

    with scripted(good_answer) as server:
        with pytest.raises(CapReachedError, match="openai.cap_cost"):
            run(config(server.url, 0.0018), root)
        with Run.open(root) as stopped:
            judged = [c.id for c in stopped.store.candidates()]
            found = spending_of(stopped)
        assert found is not None
        spent = found.spent
        assert 0 < len(judged) == spent.answers == len(server.bodies) < 6
        assert spent.cost <= 0.0018
        with pytest.raises(ConfigError, match="limit_field"):
            run(
                loop_config(server.url, openai=settings | {"limit_field": "max_completion_tokens"}),
                root,
            )
        with run(config(server.url, 1.0), root) as finished:
            assert finished.config.openai.cap_cost == 1.0
            (cycle,) = finished.cycles()
            found = status_json(finished)["spent"]
    assert len(server.bodies) == 6
    assert len({body["seed"] for body in server.bodies}) == 6
    assert all(headers["authorization"] == f"Bearer {KEY}" for headers in server.headers)
    assert (cycle.n_gen, cycle.n_accepted) == (6, 6)
    assert found["answers"] == 6
    assert found["cost"] == pytest.approx(6 * (300 + 2 * 80) / 1e6)
    assert found["cost_per_accepted"] == pytest.approx(found["cost"] / cycle.n_accepted)
    write_report([root], tmp_path / "report")
    report = (tmp_path / "report" / "report.md").read_text()
    assert f"| cost of each accepted network | {found['cost_per_accepted']:.4g} |" in report
    files = [file for file in root.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_an_interrupted_run_asks_for_nothing_more(tmp_path: Path) -> None:
    class Impatient(Silent):
        def update(self, progress: Progress) -> None:
            if progress.detail == "1 written":
                raise KeyboardInterrupt

    def answer(n: int, body: dict[str, Any]) -> Reply:
        return replace(good_answer(n, body), delay=0.2)

    before = set(psutil.Process().children())
    with scripted(answer) as server:
        with pytest.raises(KeyboardInterrupt):
            run(loop_config(server.url, completions=40), tmp_path / "run", Impatient())
        deadline = time.monotonic() + 60
        while set(psutil.Process().children()) - before:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert len(server.bodies) < 20


def test_a_candidate_does_not_see_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    look = f"import os; seen = str(dict(os.environ)); assert {KEY!r} not in seen"
    look += f" and {VARIABLE!r} not in seen"
    with Sandbox(SandboxConfig()) as sandbox:
        verdict = sandbox.probe(network(top=look), shape=(1, 8, 8), classes=4)
    assert verdict.error is None


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(server: ScriptedServer, *more: str) -> subprocess.CompletedProcess[str]:
        sets = ["task.name=digits", f"openai.base_url={server.url}", "llm.model=m", *more]
        options = [part for key in sets for part in ("--set", key)]
        script = "from archloop.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", script, "-vv", "generate", "-n", "2", "--config", "openai"]
            + ["--json", *options],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )

    return call


def test_the_command_line_asks_the_server_and_says_what_it_took(
    command: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    with scripted(good_answer) as server:
        done = command(server, f"openai.api_key_env={VARIABLE}")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == 0, done.stderr
        assert [row["n_tokens"] for row in rows] == [80, 80]
        assert "600 prompt and 160 sampled tokens in 2 answers" in done.stderr
        assert KEY not in done.stdout + done.stderr
        capped = command(server, "openai.cap_tokens=10")
    assert capped.returncode == 1
    assert "openai.cap_tokens: 0 of 10 is used" in capped.stderr.splitlines()[-1]
    with scripted(lambda _n, _body: Reply({"error": {"message": KEY}}, status=401)) as server:
        refused = command(server, f"openai.api_key_env={VARIABLE}")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].endswith(
        f"refuses the key in ${VARIABLE} (401); see openai.api_key_env"
    )
    assert KEY not in refused.stdout + refused.stderr
