"""Strategies as pure functions of the history of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from archloop.config import RunConfig, load_config
from archloop.corpus.pairs import make_pair
from archloop.search.paper import ADAPTER_REJECTED
from archloop.search.prompts import PromptTemplate
from archloop.search.strategy import Strategy, build_strategy
from archloop.types import ChatPair, Decision, Outcome
from conftest import network
from histories import SUBJECT, Memory, code, history, row, stats


def strategy(*overrides: str) -> tuple[RunConfig, Strategy]:
    config = load_config("paper", overrides)
    return config, build_strategy(config)


@pytest.mark.parametrize("name", ["paper", "random", "feedback"])
def test_the_requests_of_a_cycle_are_the_same_each_time_and_differ_in_their_seeds(
    name: str,
) -> None:
    _, found = strategy(f"search.type={name}")
    before = history(Memory([row(1, 0, "a", Outcome.ACCEPTED)], [stats(1)]))
    asked = found.ask(before, 2, 5)
    assert asked == found.ask(before, 2, 5)
    assert [r.index for r in asked] == list(range(5))
    assert len({r.seed for r in asked} | {r.seed for r in found.ask(before, 1, 5)}) == 10
    assert {(r.cycle, r.task) for r in asked} == {(2, "cifar10")}


def test_the_paper_asks_with_one_prompt_at_the_temperature_of_the_cycle() -> None:
    config, found = strategy("search.temperature_step=0.1")
    prompt = tuple(PromptTemplate.from_config(config.prompt).render(SUBJECT, 500_000))
    record = Memory([], [stats(1, near=5), stats(2, near=5), stats(3)])
    assert all(r.messages == prompt for r in found.ask(history(record), 2, 3))
    temperatures = [found.ask(history(record), cycle, 1)[0].temperature for cycle in (1, 2, 3, 4)]
    assert temperatures == [0.2, 0.3, 0.4, 0.4]


@pytest.mark.parametrize("name", ["paper", "random", "feedback"])
def test_every_strategy_accepts_what_is_novel_and_accurate(name: str) -> None:
    _, found = strategy(f"search.type={name}")
    rows = [
        row(1, 0, "old", Outcome.ACCEPTED, rejection_count=0),
        row(1, 1, "old", Outcome.NEAR_DUPLICATE, rejection_count=0),
        row(2, 0, "old", Outcome.VALID),
        row(2, 1, "seed", Outcome.VALID),
        row(2, 2, "new", Outcome.VALID, first_epoch_accuracy=0.39),
        row(2, 3, "other", Outcome.VALID, first_epoch_accuracy=0.40),
        row(2, 4, "odd", Outcome.TRAIN_ERROR),
    ]
    decided = found.decide(history(Memory(rows, [stats(1)]), seeds=["seed"]), 2)
    assert decided.threshold == 0.4
    assert [(d.id, d.outcome, d.rejection_count, d.rejected_by) for d in decided.decisions] == [
        ("c02-0000", Outcome.NEAR_DUPLICATE, 1, ("lexical",)),
        ("c02-0001", Outcome.NEAR_DUPLICATE, 2, ("lexical",)),
        ("c02-0002", Outcome.BELOW_THRESHOLD, 3, ("selection.min_accuracy",)),
        ("c02-0003", Outcome.ACCEPTED, 3, ()),
    ]


def test_later_cycles_do_not_count() -> None:
    _, found = strategy()
    later = [row(2, 0, "a", Outcome.ACCEPTED, rejection_count=3)]
    first = [row(1, 0, "a", Outcome.VALID)]
    (decision,) = found.decide(history(Memory([*first, *later], [stats(2)])), 1).decisions
    assert (decision.outcome, decision.rejection_count) == (Outcome.ACCEPTED, 0)


def pairs() -> list[ChatPair]:
    prompt = PromptTemplate().render(SUBJECT, 500_000)
    seed = make_pair(prompt, network(init="self.seed = 1"), {"source": "seed"})
    return [seed] + [
        make_pair(prompt, network(init=f"self.c = {c}"), {"cycle": c, "generated": True})
        for c in (1, 2, 3)
    ]


def test_lessons_are_the_whole_corpus_or_what_is_new() -> None:
    corpus = pairs()
    whole = strategy()[1].lessons(history(Memory(), corpus), 3)
    assert whole is not None
    assert [lesson.to_json() for lesson in whole] == [p.to_json() for p in corpus[:3]]
    new = strategy("finetune.init=previous")[1]
    lessons = new.lessons(history(Memory([], [stats(1), stats(2)]), corpus), 3)
    assert lessons is not None
    assert [lesson.meta.get("cycle") for lesson in lessons] == [2]


def test_what_a_rejected_fine_tune_did_not_learn_is_new_again() -> None:
    found = strategy("finetune.init=previous")[1]
    rejected = stats(3, decided={ADAPTER_REJECTED: "the loss is not finite"})
    lessons = found.lessons(history(Memory([], [stats(1), stats(2), rejected]), pairs()), 4)
    assert lessons is not None
    assert [lesson.meta["cycle"] for lesson in lessons] == [2, 3]


def test_nothing_new_is_an_empty_list_and_no_learning_is_none() -> None:
    corpus = pairs()[:1]
    assert strategy("finetune.init=previous")[1].lessons(history(Memory(), corpus), 2) == []
    frozen = strategy("finetune.enabled=false", "loop.final_finetune=false")[1]
    assert frozen.lessons(history(Memory(), corpus), 2) is None
    assert frozen.lessons(history(Memory(), corpus), 1), "cycle 1 learns the seed networks"
    for name in ("random", "feedback"):
        assert strategy(f"search.type={name}")[1].lessons(history(Memory(), corpus), 2) is None


def test_feedback_shows_the_last_networks_and_what_became_of_them() -> None:
    _, found = strategy("search.type=feedback", "search.memory=3")
    rows = [
        row(1, 0, "first", Outcome.ACCEPTED),
        row(1, 1, "second", Outcome.BELOW_THRESHOLD, first_epoch_accuracy=0.123),
        replace(row(1, 2, "x", Outcome.NO_CODE), code=None),
        row(1, 3, "third", Outcome.FORWARD_ERROR, error="shapes do not match"),
        row(1, 4, "fourth", Outcome.NEAR_DUPLICATE),
        row(2, 0, "later", Outcome.ACCEPTED),
    ]
    request = found.ask(history(Memory(rows, [stats(1)])), 2, 1)[0]
    assert request.origin.parents == ("c01-0001", "c01-0003", "c01-0004")
    user = request.messages[-1]["content"]
    assert code("first") not in user
    assert code("later") not in user
    places = [user.index(code(word)) for word in ("second", "third", "fourth")]
    assert places == sorted(places)
    assert "accuracy 12.30%" in user
    assert "forward_error: shapes do not match" in user


def test_feedback_leaves_out_the_oldest_where_the_memory_is_full() -> None:
    size = len(code("b"))
    _, found = strategy("search.type=feedback", f"search.memory_characters={2 * size}")
    rows = [row(1, i, word, Outcome.ACCEPTED) for i, word in enumerate("abc")]
    record = history(Memory(rows, [stats(1)]))
    assert found.ask(record, 2, 1)[0].origin.parents == ("c01-0001", "c01-0002")
    first = found.ask(record, 1, 1)[0]
    assert first.origin.parents == ()


def test_decisions_say_whether_they_accept() -> None:
    rows = [row(1, 0, "a", Outcome.VALID), row(1, 1, "a", Outcome.VALID)]
    decisions: tuple[Decision, ...] = strategy()[1].decide(history(Memory(rows)), 1).decisions
    assert [d.accepted for d in decisions] == [True, False]
