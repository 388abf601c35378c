"""Targets of prompts, selection by niche, and champions that are trained again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from statistics import stdev

import pytest
from scipy.stats import t

from archloop.code.edits import EDITS
from archloop.code.linking import linked
from archloop.code.policy import check
from archloop.config import load_config
from archloop.errors import ConfigError
from archloop.novelty.structure import STRUCTURES
from archloop.search.archive import Archive, score, spread, trainings
from archloop.search.moves import move
from archloop.search.prompts import PromptTemplate
from archloop.search.selection import NICHE_THRESHOLDS
from archloop.search.strategy import Strategy, build_strategy
from archloop.search.targets import has_structure, targets
from archloop.types import Candidate, Origin, Outcome
from histories import SUBJECT, Memory, history, row, stats

USER = "{dataset} {shape} {classes} {max_params} Structure: {structure}."


def measures(structure: str = "plain", macs: float = 3e6, *again: float) -> dict[str, float]:
    found = {name: float(s in structure.split("+")) for s, name in STRUCTURES.items()}
    return found | {"macs": macs} | {f"accuracy_again_{i}": a for i, a in enumerate(again, 1)}


def strategy(*overrides: str) -> Strategy:
    return build_strategy(load_config("paper", (f"prompt.user={USER!r}", *overrides)))


def candidate(
    cycle: int, index: int, accuracy: float, structure: str = "skip", *again: float, **rest: float
) -> Candidate:
    outcome = Outcome.VALID if cycle == 2 else Outcome.ACCEPTED
    return row(
        cycle,
        index,
        f"w{cycle}x{index}",
        outcome,
        first_epoch_accuracy=accuracy,
        measures=measures(structure, rest.get("macs", 3e6), *again),
        rejection_count=0,
    )


def test_even_targets_ask_for_every_known_class_and_budget() -> None:
    rows = [candidate(1, i, 0.5, s) for i, s in enumerate(("skip", "gate", "skip+gate"))]
    before = history(Memory(rows, [stats(1)]))
    found = targets(before, 2, 600, "even")
    assert found == targets(before, 2, 600, "even")
    by_class = Counter(target.structure for target in found)
    assert set(by_class) == {"skip", "gate", "skip+gate"}
    assert min(by_class.values()) > 150
    assert {target.max_params for target in found} == {50_000, 100_000, 200_000, 500_000}


def test_best_targets_prefer_what_did_well_within_the_whole_budget() -> None:
    rows = [candidate(1, i, 0.4, "gate") for i in range(10)]
    rows += [candidate(1, 10 + i, 0.7, "skip") for i in range(10)]
    # One lucky network is no good class.
    rows += [candidate(1, 20, 0.71, "attention")]
    before = history(Memory(rows, [stats(1)]))
    chosen = Counter(target.structure for target in targets(before, 2, 1200, "best")[1::2])
    assert chosen["skip"] > chosen["attention"] > chosen["gate"]
    assert {target.max_params for target in targets(before, 2, 20, "best")[1::2]} == {500_000}


def test_without_any_known_structure_plain_networks_are_asked_for() -> None:
    assert {t.structure for t in targets(history(Memory()), 1, 5, "best")} == {"plain"}


def test_a_request_says_what_it_asks_for_in_words_and_in_the_store() -> None:
    rows = [candidate(1, 0, 0.5, "skip+gate")]
    found = strategy("search.condition=even").ask(history(Memory(rows, [stats(1)])), 2, 3)
    for request in found:
        assert "Structure: skip, gate." in request.messages[1]["content"]
        assert f"{request.origin.max_params:,}" in request.messages[1]["content"]
        assert request.origin.structure == "skip+gate"
    (plain,) = strategy().ask(history(Memory(rows, [stats(1)])), 2, 1)
    assert "Structure: any." in plain.messages[1]["content"]
    assert plain.origin == Origin("design", plain.origin.prompt)


def test_a_condition_needs_its_place_in_the_prompt() -> None:
    with pytest.raises(ConfigError, match=r"search.condition = 'even'.*\{structure\}"):
        load_config("paper", ("search.condition=even",))
    with pytest.raises(ConfigError, match="search.champion_repeats"):
        load_config("paper", ("search.champion_repeats=2",))


def test_the_prompt_of_an_edit_has_the_instruction_and_the_network() -> None:
    template = PromptTemplate(user=USER)
    _, user = template.render_edit(
        SUBJECT, 100, "skip", instruction="Add a gate.", code="class Net:\n    pass"
    )
    assert user["content"].endswith(
        "Structure: skip.\nAdd a gate.\n```python\nclass Net:\n    pass\n```"
    )


def test_what_was_asked_for_is_there_or_not() -> None:
    found = candidate(1, 0, 0.5, "skip+gate")
    assert has_structure(found, "skip") and has_structure(found, "plain")
    assert not has_structure(found, "skip+attention")
    assert has_structure(replace(found, measures={}), "skip") is None


def niche_strategy(*overrides: str) -> Strategy:
    return strategy("search.select=niche", "selection.percentile=50", *overrides)


def test_each_niche_has_a_threshold_and_room_for_its_best() -> None:
    rows = [candidate(2, i, a, "gate") for i, a in enumerate((0.41, 0.42, 0.43, 0.44, 0.45))]
    rows += [candidate(2, 5 + i, a, "skip") for i, a in enumerate((0.60, 0.70))]
    rows += [candidate(2, 7, 0.42, "skip", macs=9e7)]
    rows += [candidate(2, 8, 0.30, "attention")]
    made = niche_strategy("search.niche_size=2").decide(history(Memory(rows, [stats(1)])), 2)
    reasons = {d.id[-1]: d.rejected_by for d in made.decisions}
    assert reasons == {
        "0": ("selection.percentile",),
        "1": ("selection.percentile",),
        "2": ("search.niche_size",),
        "3": (),
        "4": (),
        "5": ("selection.percentile",),
        "6": (),
        "7": (),
        "8": ("selection.min_accuracy",),
    }
    thresholds = made.decided[NICHE_THRESHOLDS]
    assert thresholds["gate @ 2-4M"] == pytest.approx(0.43)
    assert thresholds["skip @ 67-134M"] == pytest.approx(0.42)
    assert made.threshold == min(thresholds.values()) == 0.40


def test_an_untraced_candidate_has_a_niche_of_its_own() -> None:
    rows = [replace(candidate(2, 0, 0.5), measures={}), candidate(2, 1, 0.7)]
    made = niche_strategy().decide(history(Memory(rows, [stats(1)])), 2)
    assert [d.accepted for d in made.decisions] == [True, True]


def test_only_what_would_be_the_best_of_its_niche_is_trained_again() -> None:
    rows = [candidate(1, 0, 0.60, "skip"), candidate(1, 1, 0.50, "gate")]
    rows += [
        candidate(2, 0, 0.61, "skip"),
        candidate(2, 1, 0.59, "skip"),
        candidate(2, 2, 0.55, "gate"),
        candidate(2, 3, 0.90, "attention"),
    ]
    before = history(Memory(rows, [stats(1)]))
    found = niche_strategy("search.champion_repeats=2").again(before, 2)
    assert [(r.candidate.id, r.number) for r in found] == [
        ("c02-0000", 1),
        ("c02-0000", 2),
        ("c02-0002", 1),
        ("c02-0002", 2),
    ]
    assert len({r.seed for r in found}) == 4
    assert niche_strategy().again(before, 2) == []
    # With the results it asks for the same, so that an interrupted run goes on.
    done = replace(rows[2], measures=measures("skip", 3e6, 0.1, 0.1))
    again = history(Memory([*rows[:2], done, *rows[3:]], [stats(1)]))
    asked = niche_strategy("search.champion_repeats=2").again(again, 2)
    assert [(r.candidate.id, r.seed) for r in asked] == [(r.candidate.id, r.seed) for r in found]


def test_the_score_is_the_lower_bound_with_the_pooled_spread() -> None:
    twice = candidate(1, 0, 0.60, "skip", 0.56)
    thrice = candidate(1, 1, 0.50, "skip", 0.52, 0.51)
    once = candidate(1, 2, 0.70, "skip")
    noise = spread([twice, thrice, once])
    assert noise is not None
    assert noise.freedom == 3
    pooled = (stdev((0.60, 0.56)) ** 2 + 2 * stdev((0.50, 0.52, 0.51)) ** 2) / 3
    assert noise.deviation**2 == pytest.approx(pooled)
    expected = 0.58 - t.ppf(0.95, 3) * pooled**0.5 / 2**0.5
    assert score(twice, noise) == pytest.approx(expected)
    assert score(once, noise) == 0.70
    assert score(twice, None) == 0.60
    assert trainings(thrice) == (0.50, 0.52, 0.51)


def test_a_lucky_candidate_does_not_become_champion() -> None:
    steady = candidate(1, 0, 0.60, "skip", 0.60, 0.61)
    lucky = candidate(2, 0, 0.66, "skip", 0.55, 0.56)
    noise = spread([steady, lucky])
    archive = Archive.of([steady, lucky], noise)
    assert [c.id for _, c in archive.by_niche["skip @ 2-4M"]] == ["c01-0000", "c02-0000"]
    rows = [steady, lucky]
    made = niche_strategy().decide(history(Memory(rows, [stats(1)])), 2)
    assert made.decisions[0].rejected_by == ("selection.percentile",)


DESIGN = """from archloop.blocks import *

class Net(Design):

    def layers(self, classes):
        return [conv(16), nn.MaxPool2d(2), conv(32), conv(), nn.MaxPool2d(2), conv(), head(classes)]
"""


def accepted_design() -> Candidate:
    return replace(candidate(1, 0, 0.5), code=linked(DESIGN))


@pytest.mark.parametrize("search", ["paper", "random"])
def test_a_share_of_the_requests_are_edits_of_accepted_networks(search: str) -> None:
    made = strategy(f"search.type={search}", "search.edits=0.5")
    before = history(Memory([accepted_design()], [stats(1)]))
    found = made.ask(before, 2, 60)
    assert found == made.ask(before, 2, 60)
    edits = [r for r in found if r.origin.operator.startswith("edit:")]
    assert 15 < len(edits) < 45
    assert len({r.origin.operator for r in edits}) > 5
    for request in edits:
        instruction = EDITS[request.origin.operator.removeprefix("edit:")].instruction
        assert instruction in request.messages[1]["content"]
        assert request.origin.parents == ("c01-0000",)
        code = move(request)
        assert code is not None and code != linked(DESIGN)
        assert check(code) is None
        assert move(request) == code
    # In the first cycle there is nothing to edit.
    assert not [r for r in made.ask(before, 1, 20) if r.origin.operator.startswith("edit:")]


def test_a_request_for_a_design_is_no_move() -> None:
    (request,) = strategy("search.type=random").ask(history(Memory()), 1, 1)
    assert move(request) is None
