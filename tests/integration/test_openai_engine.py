"""The ``openai`` engine: what it sends, what it makes of answers, faults and caps one by one.

A small HTTP server answers as told; ``test_openai_runs.py`` has a real one.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from archloop.errors import ArchloopError, CapReachedError, UsageError
from archloop.llm.spending import Spent
from archloop.types import Message
from remote_parts import KEY, PROMPT, VARIABLE, by_index, engine, request, requests
from scripted_server import Reply, chat, scripted


def test_what_is_sent() -> None:
    settings = {
        "extra_body": {"min_p": 0.1},
        "limit_field": "max_completion_tokens",
        "decoding": {"top_p": 0.9, "top_k": 40},
    }
    with scripted(lambda _n, _body: chat("x")) as server:
        generator, _ = engine(server.url, **settings)
        list(generator.generate([request(3, 42, temperature=0.7)]))
        generator.close()
    (body,) = server.bodies
    assert body == {
        "model": "m",
        "messages": list(PROMPT),
        "seed": 42,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "max_completion_tokens": 12,
        "min_p": 0.1,
    }


def test_requests_of_one_batch_keep_their_prompt_and_temperature() -> None:
    other: tuple[Message, ...] = ({"role": "user", "content": "Name a much longer colour."},)
    asked = [request(0, 1), request(1, 2, other, 0.0), request(2, 3, PROMPT, 0.3)]
    with scripted(lambda _n, body: chat(body["messages"][0]["content"])) as server:
        generator, budget = engine(server.url)
        texts = by_index(list(generator.generate(asked)))
        generator.close()
    assert [text.text for text in texts] == [r.messages[0]["content"] for r in asked]
    sent = {body["seed"]: body["temperature"] for body in server.bodies}
    assert sent == {1: 1.0, 2: 0.0, 3: 0.3}
    assert budget._longest == (len("Name a much longer colour.") + 64, 12)


def test_no_key_of_somebody_else_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-another-server")
    with scripted(lambda _n, _body: chat("x")) as server:
        generator, _ = engine(server.url)
        list(generator.generate(requests(1)))
    assert "another" not in json.dumps(server.headers)


def test_an_answer_is_yielded_as_soon_as_it_is_there() -> None:
    def answer(_n: int, body: dict[str, Any]) -> Reply:
        return chat(f"{body['seed']}", delay=0.5 if body["seed"] == 100 else 0.0)

    with scripted(answer) as server:
        generator, _ = engine(server.url)
        texts = list(generator.generate(requests(3)))
    assert texts[-1].index == 0
    assert [text.text for text in by_index(texts)] == ["100", "101", "102"]


def test_no_more_requests_at_once_than_configured() -> None:
    with scripted(lambda _n, _body: chat("x", delay=0.05)) as server:
        generator, _ = engine(server.url, concurrency=3)
        assert len(list(generator.generate(requests(9)))) == 9
    assert server.most_at_once == 3


def test_requests_keep_their_distance_retries_too() -> None:
    def answer(n: int, _body: dict[str, Any]) -> Reply:
        return Reply({}, status=429, headers={"retry-after-ms": "1"}) if n == 0 else chat("x")

    with scripted(answer) as server:
        generator, _ = engine(server.url, requests_per_minute=600)
        assert len(list(generator.generate(requests(4)))) == 4
    assert len(server.times) == 5
    assert server.times[-1] - server.times[0] > 0.25


@pytest.mark.parametrize(
    ("reply", "text", "reason"),
    [
        (chat("cut", reason="length", tokens=12), "cut", "length"),
        (chat(None, reason="content_filter"), "", "content_filter"),
        (chat(None, reason="tool_calls"), "", "other"),
        (chat(None, message={"refusal": "I will not."}), "I will not.", "stop"),
        (chat("x", body={"choices": []}), "", "other"),
        (Reply({"error": {"code": "content_filter"}}, status=400), "", "content_filter"),
        (
            chat("half \ud83d a smile, \ud83d\ude00 a whole one"),
            "half ? a smile, 😀 a whole one",
            "stop",
        ),
    ],
    ids=[
        "length",
        "filtered",
        "tool call",
        "refusal",
        "no choice",
        "refused by the filter",
        "half a character",
    ],
)
def test_an_unusual_answer_is_data(reply: Reply, text: str, reason: str) -> None:
    with scripted(lambda _n, _body: reply) as server:
        generator, _ = engine(server.url)
        (answer,) = generator.generate(requests(1))
    assert (answer.text, answer.finish_reason) == (text, reason)


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
        (answer,) = generator.generate(requests(1))
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
            list(generator.generate(requests(1)))
    assert not isinstance(error.value, UsageError)
    assert budget.spent.unanswered == (reply.status == 200), "what timed out may be billed"


def test_a_silent_server_is_asked_again_and_each_try_is_charged() -> None:
    with scripted(lambda n, _body: chat("x", delay=1.0 if n == 0 else 0.0)) as server:
        generator, budget = engine(server.url, retries=1, timeout_seconds=0.3)
        (answer,) = generator.generate(requests(1))
    assert answer.text == "x"
    assert (budget.spent.answers, budget.spent.unanswered) == (1, 1)
    assert budget.spent.completion_tokens == 12 + 5


@pytest.mark.parametrize("status", [408, 504])
def test_what_a_gateway_gave_up_on_is_charged(status: int) -> None:
    gone = Reply({}, status=status)
    with scripted(lambda n, _body: gone if n == 0 else chat("x")) as server:
        generator, budget = engine(server.url, retries=1)
        (answer,) = generator.generate(requests(1))
    assert answer.text == "x"
    assert (budget.spent.answers, budget.spent.unanswered) == (1, 1)


def test_a_retry_that_would_pass_a_cap_is_not_sent() -> None:
    with scripted(lambda _n, _body: chat("x", delay=1.0)) as server:
        generator, _ = engine(server.url, retries=5, timeout_seconds=0.3, cap_tokens=150)
        with pytest.raises(CapReachedError, match="cap_tokens"):
            list(generator.generate(requests(1)))
    assert len(server.bodies) == 1


def test_a_server_that_is_not_there_costs_nothing() -> None:
    generator, budget = engine("http://127.0.0.1:9/v1", retries=1, cap_tokens=150)
    with pytest.raises(ArchloopError, match="127.0.0.1:9/v1 cannot be reached"):
        next(generator.generate(requests(1)))
    assert budget.spent == Spent()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply({"error": {"message": f"bad {KEY}"}}, status=401), rf"\${VARIABLE} \(401\)"),
        (Reply({"error": {"message": "nothing"}}, status=404), "no model 'm'.*nothing"),
        (Reply({"error": {"message": f"{KEY} no"}}, status=400), r"refuses the request.*\*\*\* no"),
        (Reply(["no", "completion"]), "not with a chat completion"),
        (chat("x", body={"usage": None}), "how many tokens"),
        (chat("x", body={"usage": {"prompt_tokens": 3}}), "how many tokens"),
    ],
    ids=["key", "model", "request", "another service", "no usage", "half of it"],
)
def test_a_refusal_is_one_line_without_the_key(
    reply: Reply, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    with scripted(lambda _n, _body: reply) as server:
        generator, _ = engine(server.url, api_key_env=VARIABLE)
        with pytest.raises(UsageError, match=said) as error:
            list(generator.generate(requests(3)))
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
        answers = generator.generate(requests(9))
        kept = [next(answers), next(answers)]
        with pytest.raises(UsageError):
            next(answers)
    assert {text.index for text in kept} == {0, 2}
    assert len(server.bodies) == 3


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
        budget.expect([()], 12)
        budget.charge(10, 0)
        nothing: tuple[Message, ...] = ({"role": "user", "content": ""},)
        answers = generator.generate([request(i, 100 + i, nothing) for i in range(30)])
        found = []
        with pytest.raises(CapReachedError, match=key):
            found.extend(answers)
    assert budget.spent.tokens <= 100
    assert budget.spent.tokens + 22 > 100
    assert len(found) == len(server.bodies) == (budget.spent.tokens - 10) // 15
