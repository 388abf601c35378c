"""What a report says of the structure of networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from archloop.code.linking import linked
from archloop.novelty.structure import STRUCTURES
from archloop.report.diagrams import Part, designs_svg, diagram
from archloop.report.figures import classes_svg
from archloop.report.markdown import markdown
from archloop.report.structures import Asked, Cell, effective_number, in_words, of_cycles
from archloop.types import Candidate, GraphSketch, Outcome

ACCEPTED, VALID = Outcome.ACCEPTED, Outcome.BELOW_THRESHOLD


def candidate(
    cycle: int, index: int, structure: str, outcome: Outcome, motifs: str = "", **rest: Any
) -> Candidate:
    measures = {name: float(s in structure.split("+")) for s, name in STRUCTURES.items()}
    graph = GraphSketch("0" * 64, b"", motifs=tuple(motifs.split()))
    return Candidate(
        f"c{cycle:02d}-{index:04d}",
        cycle,
        index,
        outcome,
        graph=graph,
        measures=measures | {"macs": rest.pop("macs", 3e6)},
        **rest,
    )


CYCLES = [
    [
        candidate(1, 0, "skip", ACCEPTED, "a b", n_params=90),
        candidate(1, 1, "skip+gate", ACCEPTED, "b c", n_params=150),
        candidate(1, 2, "plain", VALID, "z", n_params=10),
    ],
    [
        candidate(2, 0, "skip", ACCEPTED, "a d", macs=9e7),
        replace(candidate(2, 1, "skip", ACCEPTED, "e"), measures={}, graph=None),
    ],
]
SEEDS = [GraphSketch("1" * 64, b"", motifs=("a",)), None]


def test_classes_motifs_and_niches_are_counted() -> None:
    first, second, whole = of_cycles(CYCLES, SEEDS, {})
    assert first.valid == {"skip": 1, "skip+gate": 1, "plain": 1}
    assert first.accepted == {"skip": 1, "skip+gate": 1}
    assert (first.structured, first.niches, first.new_motifs) == (2, 2, {"b": 2, "c": 1})
    # The motif "d" is new; a network whose structure is not known has no class and no niche.
    assert second.accepted == {"skip": 1}
    assert (second.niches, second.new_motifs) == (3, {"d": 1})
    assert (whole.niches, whole.new_motifs) == (3, {"b": 2, "c": 1, "d": 1})
    assert whole.valid.total() == 4


def test_the_grid_has_the_best_accepted_network_of_each_niche() -> None:
    scored = [
        [
            candidate(1, 0, "skip", ACCEPTED, first_epoch_accuracy=0.5),
            candidate(1, 1, "skip", ACCEPTED, first_epoch_accuracy=0.6),
            candidate(1, 2, "skip", VALID, first_epoch_accuracy=0.9),
            candidate(1, 3, "plain", VALID, first_epoch_accuracy=0.4, macs=9e7),
        ],
        CYCLES[1],
    ]
    first, second, whole = of_cycles(scored, SEEDS, {})
    assert first.grid == {
        ("skip", "2-4M"): Cell(3, 2, 0.6),
        ("plain", "67-134M"): Cell(1, 0, None),
    }
    assert second.grid == {("skip", "67-134M"): Cell(1, 1, None)}
    assert whole.grid == first.grid | second.grid


def test_without_the_seeds_motifs_nothing_is_new() -> None:
    assert {found.new_motifs for found in of_cycles(CYCLES, None, {})} == {None}


def test_what_prompts_asked_for_is_compared_with_what_came() -> None:
    asked = {"c01-0000": ("skip", 100), "c01-0001": ("skip", 100), "c01-0002": ("gate", None)}
    first, second, _ = of_cycles(CYCLES, SEEDS, asked)
    assert first.asked == Asked(n=3, exact=1, at_least=2, within_budget=2)
    assert second.asked == Asked(n=0, exact=0, at_least=0, within_budget=0)


def test_the_effective_number_is_the_exponential_of_the_entropy() -> None:
    assert effective_number({}) is None
    assert effective_number({"a": 7}) == 1
    assert effective_number({"a": 2, "b": 2, "c": 2, "d": 2}) == 4
    assert effective_number({"a": 9, "b": 1}) == pytest.approx(0.9**-0.9 * 0.1**-0.1)


def test_classes_are_told_on_one_line() -> None:
    networks = [c.measures for cycle in CYCLES for c in cycle]
    said = "skip 2, skip+gate 1, plain 1; effective number of classes 2.8; niches 4"
    assert in_words(networks) == said
    assert in_words([{}]) is None


def labels(part: Part) -> object:
    if part.arrangement == "box":
        return part.label
    return (part.arrangement, part.label, *map(labels, part.children))


def test_a_diagram_has_what_the_source_lists() -> None:
    code = linked(
        "from archloop.blocks import *\n\nclass Net(Design):\n    def layers(self, classes):\n"
        "        return [conv(32, 5, stride=2), Skip(conv(), depthwise(stride=2)), "
        "Join(conv(8), nn.Sequential(conv(kernel=(1, 7)), mix(4))), nn.MaxPool2d(2), head(classes)]"
    )
    assert labels(diagram(code)) == (
        "chain",
        "",
        "conv 5 /2 · 32",
        ("around", "+", "conv 3", "depthwise 3 /2"),
        ("branches", "join", "conv 3 · 8", ("chain", "", "conv (1,7)", "mix 4")),
        "Max pool",
        "head",
    )
    assert diagram(code).height > 6 * diagram("x = 1").height == 0
    assert labels(diagram("class Net(:")) == ("chain", "")


def test_the_best_of_each_class_are_drawn() -> None:
    code = "self.a = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())"
    rows = [
        candidate(1, i, s, ACCEPTED, code=code, first_epoch_accuracy=0.5 + i / 100, n_params=1000)
        for i, s in enumerate(["plain"] * 30 + ["skip", "gate"])
    ]
    text = designs_svg("a <run> $x$", rows)
    assert text.count("conv 3 · 8") == 24
    assert "c01-0030" in text and "c01-0031" in text
    assert "c01-0001" not in text
    assert designs_svg("a", rows) == designs_svg("a", rows)
    assert "<svg" in designs_svg("nothing", [])


def test_the_figure_has_a_bar_for_each_cycle_and_a_name_for_each_class() -> None:
    many = [[candidate(1, i, s, ACCEPTED) for i, s in enumerate(STRUCTURES)]] + CYCLES
    text = classes_svg("a <run> $x$", of_cycles(many, SEEDS, {})[:-1])
    for name in ("skip+gate", "plain", "attention", "others", "a &lt;run&gt; $x$"):
        assert name in text
    assert classes_svg("a", of_cycles(CYCLES, SEEDS, {})[:-1]) == classes_svg(
        "a", of_cycles(CYCLES, SEEDS, {})[:-1]
    )
    assert markdown([]).startswith("# Report")
