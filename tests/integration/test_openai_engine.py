"""The ``openai`` engine against a real server with the embedded LLM, and its faults one by one.

The real server is transformers' own. What it cannot be made to do (be busy, fail once, refuse a
key) comes from a small HTTP server that answers as told.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from archloop.chat import render_code
from archloop.config import GenerationConfig, LLMConfig, RunConfig, SandboxConfig, resolve
from archloop.engine_config import OpenAIConfig
from archloop.errors import ArchloopError, CapReachedError, ConfigError, UsageError
from archloop.generation import GeneratedText, Generator, build_generator
from archloop.llm import resolve_model
from archloop.loop import run
from archloop.report import status_json, write_report
from archloop.run_dir import Run
from archloop.sandbox import Sandbox
from archloop.spending import Budget, Remote, Spent
from archloop.types import Message
from conftest import network
from scripted_server import Reply, ScriptedServer, chat, scripted

PROMPT: list[Message] = [{"role": "user", "content": "Name a colour."}]
KEY, VARIABLE = "sk-archloop-test-4b1d", "ARCHLOOP_TEST_API_KEY"


def engine(
    url: str, model: str = "m", spent: Spent | None = None, **settings: Any
) -> tuple[Generator, Budget]:
    decoding = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": 12,
    } | settings.pop("decoding", {})
    server = OpenAIConfig(base_url=url, **settings)
    budget = Budget(server, spent or Spent())
    generator = build_generator(
        GenerationConfig(engine="openai", **decoding),
        model_dir=Path(),
        adapter_dir=None,
        dtype="float32",
        remote=Remote(server, model, budget),
    )
    return generator, budget


def requests(n: int) -> list[tuple[int, int]]:
    return [(index, 100 + index) for index in range(n)]


def by_index(texts: list[GeneratedText]) -> list[GeneratedText]:
    return sorted(texts, key=lambda text: text.index)


# --- a real server -----------------------------------------------------------------------------


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
@pytest.mark.slow
def test_the_real_server_writes_what_the_llm_writes(real: RealServer) -> None:
    """Greedy text, token count and finish reason are those of the transformers engine."""
    decoding = {"temperature": 0.0}
    generator, budget = engine(real.url, real.model, concurrency=1, decoding=decoding)
    (cut,) = generator.generate(PROMPT, [(0, 1)])
    (stopped,) = generator.generate([{"role": "user", "content": "Hi"}], [(1, 1)])
    generator.close()
    local = build_generator(
        GenerationConfig(engine="transformers", temperature=0.0, max_new_tokens=12),
        model_dir=real.folder,
        adapter_dir=None,
        dtype="float32",
    )
    assert list(local.generate(PROMPT, [(0, 1)])) == [cut]
    assert list(local.generate([{"role": "user", "content": "Hi"}], [(1, 1)])) == [stopped]
    assert (cut.finish_reason, cut.n_tokens) == ("length", 12)
    assert (stopped.finish_reason, stopped.text[:5]) == ("stop", "Hello")
    assert budget.spent.answers == 2
    assert budget.spent.completion_tokens == 12 + stopped.n_tokens
    assert budget.spent.prompt_tokens > 40


@pytest.mark.llm
@pytest.mark.slow
def test_the_real_server_samples_by_seed_and_streams(real: RealServer) -> None:
    settings = {"concurrency": 1, "extra_body": SAMPLING, "decoding": {"temperature": 2.0}}
    generator, budget = engine(real.url, real.model, **settings)
    answers = generator.generate(PROMPT, requests(3))
    first = next(answers)
    assert budget.spent.answers == 1, "the others are not waited for"
    texts = by_index([first, *answers])
    assert [(text.index, text.seed) for text in texts] == requests(3)
    assert len({text.text for text in texts}) == 3
    assert list(generator.generate(PROMPT, [requests(3)[1]])) == [texts[1]]
    generator.close()


@pytest.mark.llm
@pytest.mark.slow
def test_the_real_server_refuses_in_one_line(real: RealServer) -> None:
    refused, _ = engine(real.url, real.model, decoding={"top_k": 5})
    with pytest.raises(UsageError, match="refuses the request: .*top_k"):
        next(refused.generate(PROMPT, requests(1)))
    unknown, _ = engine(real.url, "no-such-model")
    with pytest.raises(UsageError, match="pinned to"):
        next(unknown.generate(PROMPT, requests(1)))


@pytest.mark.llm
@pytest.mark.slow
def test_a_whole_run_against_the_real_server(real: RealServer, tmp_path: Path) -> None:
    config = loop_config(real.url, model=real.model, max_new_tokens=8, completions=3)
    with run(config, tmp_path / "run") as finished:
        (cycle,) = finished.cycles()
        assert (cycle.n_gen, cycle.adapter) == (3, "none")
        completions = finished.store.completions(1)
        spent = finished.spent()
    assert spent is not None
    assert spent.answers == 3
    assert spent.completion_tokens == sum(c.n_tokens for c in completions) == cycle.n_tokens
    assert not (tmp_path / "run" / "adapters").exists()


# --- requests and answers ----------------------------------------------------------------------


def test_what_is_sent() -> None:
    settings = {
        "extra_body": {"min_p": 0.1},
        "limit_field": "max_completion_tokens",
        "decoding": {"temperature": 0.7, "top_p": 0.9, "top_k": 40},
    }
    with scripted(lambda _n, _body: chat("x")) as server:
        generator, _ = engine(server.url, **settings)
        list(generator.generate(PROMPT, [(3, 42)]))
        generator.close()
    (body,) = server.bodies
    assert body == {
        "model": "m",
        "messages": PROMPT,
        "seed": 42,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "max_completion_tokens": 12,
        "min_p": 0.1,
    }


def test_no_key_of_somebody_else_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-another-server")
    with scripted(lambda _n, _body: chat("x")) as server:
        generator, _ = engine(server.url)
        list(generator.generate(PROMPT, requests(1)))
    assert "another" not in json.dumps(server.headers)


def test_an_answer_is_yielded_as_soon_as_it_is_there() -> None:
    def answer(_n: int, body: dict[str, Any]) -> Reply:
        return chat(f"{body['seed']}", delay=0.5 if body["seed"] == 100 else 0.0)

    with scripted(answer) as server:
        generator, _ = engine(server.url)
        texts = list(generator.generate(PROMPT, requests(3)))
    assert texts[-1].index == 0
    assert [text.text for text in by_index(texts)] == ["100", "101", "102"]


def test_no_more_requests_at_once_than_configured() -> None:
    with scripted(lambda _n, _body: chat("x", delay=0.05)) as server:
        generator, _ = engine(server.url, concurrency=3)
        assert len(list(generator.generate(PROMPT, requests(9)))) == 9
    assert server.most_at_once == 3


def test_requests_keep_their_distance_retries_too() -> None:
    def answer(n: int, _body: dict[str, Any]) -> Reply:
        return Reply({}, status=429, headers={"retry-after-ms": "1"}) if n == 0 else chat("x")

    with scripted(answer) as server:
        generator, _ = engine(server.url, requests_per_minute=600)
        assert len(list(generator.generate(PROMPT, requests(4)))) == 4
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert len(gaps) == 4
    assert min(gaps) > 0.05


@pytest.mark.parametrize(
    ("reply", "text", "reason"),
    [
        (chat("cut", reason="length", tokens=12), "cut", "length"),
        (chat(None, reason="content_filter"), "", "content_filter"),
        (chat(None, reason="tool_calls"), "", "other"),
        (chat(None, message={"refusal": "I will not."}), "I will not.", "stop"),
        (chat("x", body={"choices": []}), "", "other"),
        (Reply({"error": {"code": "content_filter"}}, status=400), "", "content_filter"),
    ],
    ids=["length", "filtered", "tool call", "refusal", "no choice", "refused by the filter"],
)
def test_an_answer_without_text_is_data(reply: Reply, text: str, reason: str) -> None:
    with scripted(lambda _n, _body: reply) as server:
        generator, _ = engine(server.url)
        (answer,) = generator.generate(PROMPT, requests(1))
    assert (answer.text, answer.finish_reason) == (text, reason)


# --- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (Reply({}, status=429, headers={"retry-after": "1"}), 1.0),
        (Reply({}, status=500), 0.3),
        (Reply({}, status=503), 0.3),
    ],
    ids=["busy", "fails", "unavailable"],
)
def test_a_passing_fault_is_tried_again(reply: Reply, seconds: float) -> None:
    with scripted(lambda n, _body: reply if n == 0 else chat("x")) as server:
        generator, budget = engine(server.url)
        (answer,) = generator.generate(PROMPT, requests(1))
    assert answer.text == "x"
    assert server.times[1] - server.times[0] >= seconds
    assert (budget.spent.answers, budget.spent.unanswered) == (1, 0)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply({"error": {"message": "quota"}}, status=429), "quota.*after 1 tries.*requests_per"),
        (Reply({}, status=500), "500.*after 1 tries"),
        (chat("x", delay=1.0), r"no answer within 0\.3 s .*1 tries"),
    ],
    ids=["busy", "fails", "silent"],
)
def test_a_lasting_fault_ends_the_run(reply: Reply, said: str) -> None:
    with scripted(lambda _n, _body: reply) as server:
        generator, budget = engine(server.url, retries=0, timeout_seconds=0.3)
        with pytest.raises(ArchloopError, match=said) as error:
            list(generator.generate(PROMPT, requests(1)))
    assert not isinstance(error.value, UsageError)
    assert budget.spent.unanswered == (reply.status == 200), "what timed out may be billed"


def test_a_silent_server_is_asked_again_and_each_try_is_charged() -> None:
    with scripted(lambda n, _body: chat("x", delay=1.0 if n == 0 else 0.0)) as server:
        generator, budget = engine(server.url, retries=1, timeout_seconds=0.3)
        (answer,) = generator.generate(PROMPT, requests(1))
    assert answer.text == "x"
    assert (budget.spent.answers, budget.spent.unanswered) == (1, 1)
    assert budget.spent.completion_tokens == 12 + 5


def test_a_retry_that_would_pass_a_cap_is_not_sent() -> None:
    with scripted(lambda _n, _body: chat("x", delay=1.0)) as server:
        generator, _ = engine(server.url, retries=5, timeout_seconds=0.3, cap_tokens=150)
        with pytest.raises(CapReachedError, match="cap_tokens"):
            list(generator.generate(PROMPT, requests(1)))
    assert len(server.bodies) == 1


def test_a_server_that_is_not_there() -> None:
    generator, _ = engine("http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(ArchloopError, match="127.0.0.1:9/v1 cannot be reached"):
        next(generator.generate(PROMPT, requests(1)))


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply({"error": {"message": f"bad {KEY}"}}, status=401), rf"\${VARIABLE} \(401\)"),
        (Reply({"error": {"message": "nothing"}}, status=404), "no model 'm'.*nothing"),
        (Reply({"error": {"message": f"{KEY} no"}}, status=400), r"refuses the request.*\*\*\* no"),
        (Reply(["no", "completion"]), "not with a chat completion"),
        (chat("x", body={"usage": None}), "how many tokens"),
    ],
    ids=["key", "model", "request", "another service", "no usage"],
)
def test_a_refusal_is_one_line_without_the_key(
    reply: Reply, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    with scripted(lambda _n, _body: reply) as server:
        generator, _ = engine(server.url, api_key_env=VARIABLE)
        with pytest.raises(UsageError, match=said) as error:
            list(generator.generate(PROMPT, requests(3)))
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UsageError, match=f"{VARIABLE} is not set"):
        engine("http://127.0.0.1:9/v1", api_key_env=VARIABLE)


def test_what_is_under_way_is_kept_when_another_request_fails() -> None:
    def answer(_n: int, body: dict[str, Any]) -> Reply:
        return Reply({}, status=404) if body["seed"] == 101 else chat("x", delay=0.3)

    with scripted(answer) as server:
        generator, _ = engine(server.url, concurrency=3)
        answers = generator.generate(PROMPT, requests(9))
        kept = [next(answers), next(answers)]
        with pytest.raises(UsageError):
            next(answers)
    assert {text.index for text in kept} == {0, 2}
    assert len(server.bodies) == 3


# --- caps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize(
    ("caps", "key"),
    [
        ({"cap_tokens": 100}, "openai.cap_tokens"),
        ({"cap_cost": 100e-6, "input_price": 1.0, "output_price": 1.0}, "openai.cap_cost"),
    ],
)
def test_a_cap_is_never_passed_and_fully_used(
    caps: dict[str, Any], key: str, concurrency: int
) -> None:
    """Fifteen tokens an answer, 22 the longest: 6 answers fit under 100 one after the other."""
    with scripted(lambda _n, _body: chat("x", delay=0.02)) as server:
        generator, budget = engine(
            server.url,
            spent=Spent(1, prompt_tokens=0, completion_tokens=0),
            concurrency=concurrency,
            **caps,
        )
        budget.expect([], 12)
        budget.charge(10, 0)
        answers = generator.generate([{"role": "user", "content": ""}], requests(30))
        found = []
        with pytest.raises(CapReachedError, match=key):
            found.extend(answers)
    assert budget.spent.tokens <= 100
    assert budget.spent.tokens + 22 > 100
    assert len(found) == len(server.bodies) == (budget.spent.tokens - 10) // 15


def loop_config(url: str, *, model: str = "m", **changes: Any) -> RunConfig:
    openai = {"base_url": url, "concurrency": 2} | changes.pop("openai", {})
    return resolve(
        {
            "llm": {"model": model},
            "seeds": {"source": "none"},
            "prompt": {"system": "You write code.", "user": "A network for {dataset}."},
            "generation": {
                "engine": "openai",
                "top_k": 0,
                "max_new_tokens": changes.pop("max_new_tokens", 100),
            },
            "openai": openai,
            "task": {"name": "digits", "image_size": 16, "max_params": 100_000},
            "protocol": {"augmentation": "none", "lr": 0.05, "train_images": 600},
            "selection": {"min_accuracy": 0.01},
            "finetune": {"enabled": False},
            "loop": {"cycles": 1, "completions": changes.pop("completions", 6)},
        }
    )


def good_answer(_n: int, body: dict[str, Any]) -> Reply:
    """A network of its own for each seed."""
    own = "; ".join(f"self.s{body['seed']}x{i} = {i}" for i in range(40))
    return chat(render_code(network(init=own)), prompt_tokens=300, tokens=80)


@pytest.mark.slow
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
            spent = stopped.spent()
        assert spent is not None
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
    assert cycle.n_accepted == 6
    assert found["answers"] == 6
    assert found["cost"] == pytest.approx(6 * (300 + 2 * 80) / 1e6)
    assert found["cost_per_accepted"] == pytest.approx(found["cost"] / 6)
    write_report([root], tmp_path / "report")
    report = (tmp_path / "report" / "report.md").read_text()
    assert "| cost of each accepted network | 0.00046 |" in report
    files = [file for file in root.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


@pytest.mark.slow
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


@pytest.mark.slow
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
