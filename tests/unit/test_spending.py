from __future__ import annotations

from typing import Any

import pytest

from archloop.config.engines import OpenAIConfig
from archloop.llm.spending import Budget, Spent
from archloop.types import Message

PROMPT: list[Message] = [{"role": "user", "content": "x" * 36}]
"""At most 100 tokens: a byte each, and the template's."""


def budget(spent: Spent | None = None, **caps: Any) -> Budget:
    made = Budget(OpenAIConfig(**caps), spent or Spent())
    made.expect([PROMPT], 50)
    return made


def test_without_caps_everything_is_admitted() -> None:
    made = budget(Spent(10, 10**9, 10**9, 10**6))
    assert made.admits()


@pytest.mark.parametrize(("cap", "admitted"), [(149, False), (150, True)])
def test_the_longest_answer_has_to_fit(cap: int, admitted: bool) -> None:
    assert budget(cap_tokens=cap).admits() is admitted


def test_requests_under_way_count_as_their_longest_answer() -> None:
    made = budget(cap_tokens=300)
    made.open()
    assert made.admits()
    made.open()
    assert not made.admits()
    made.charge(20, 5)
    made.close()
    assert made.admits()


def test_the_prompt_is_known_once_it_has_been_counted() -> None:
    made = budget(cap_tokens=200)
    made.charge(20, 5)
    assert made.spent == Spent(1, 20, 5, 0.0)
    made.charge(20, 90)
    assert not made.admits()


def test_of_several_prompts_the_longest_counts_throughout() -> None:
    made = Budget(OpenAIConfig(cap_tokens=220), Spent())
    made.expect([PROMPT, [{"role": "user", "content": "x" * 86}]], 50)
    made.charge(20, 0)
    assert made.admits(), "20 + 150 + 50 is just the cap"
    made.charge(1, 0)
    assert not made.admits()


def test_money_is_counted_by_kind_of_token() -> None:
    made = budget(input_price=1.0, output_price=10.0, cap_cost=0.001)
    made.charge(100, 30)
    assert made.spent.cost == pytest.approx(400e-6)
    assert made.admits(), "100 + 50 x 10 more is just the cap"
    made.charge(1, 0)
    made.charge_unanswered()
    assert made.spent.unanswered == 1
    assert made.spent.cost == pytest.approx((401 + 501) * 1e-6)
    assert not made.admits()
    assert "openai.cap_cost: 0.000902 of 0.001 is used" in made.stop_line()


def test_the_line_of_a_token_cap_names_it() -> None:
    made = budget(Spent(1, 1000, 10), cap_tokens=1100)
    line = made.stop_line()
    assert line.startswith("openai.cap_tokens: 1,010 of 1,100 is used and one more")
    assert "\n" not in line


def test_what_is_spent_survives_json() -> None:
    spent = Spent(3, 30, 40, 0.5, 1)
    assert Spent.from_json(spent.to_json()) == spent
    assert Spent.from_json(None) == Spent()
