"""Seed corpora chosen by structure: limits of cost, balance, narrowing, and edited networks."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from archloop.code.chat import extract_code
from archloop.code.edits import EDITS
from archloop.code.linking import linked
from archloop.config import NoveltyConfig, SeedsConfig
from archloop.corpus.seeds import build_corpus
from archloop.corpus.seeds.source import SeedNetwork
from archloop.search.prompts import PromptTemplate
from archloop.types import PROFILE, ChatPair, GraphSketch, Outcome, Verdict
from made_seeds import Listed

TEMPLATE = PromptTemplate(user="{dataset} {shape} {classes} {max_params} Structure: {structure}.")
HEAD = "from archloop.blocks import *\n\nclass Net(Design):\n\n    def layers(self, classes):\n"


def design(number: int, inner: str) -> SeedNetwork:
    rng = random.Random(number)
    widths = [f"conv({rng.randrange(16, 200)})" for _ in range(12)]
    layers = [*widths, "nn.MaxPool2d(2)", inner, "conv()", "head(classes)"]
    code = linked(f"{HEAD}        return [{', '.join(layers)}]\n")
    return SeedNetwork(f"net-{number:03d}", "made", code, None)


def net_of(code: str) -> str:
    return code.partition("class Net")[2]


def n_params(code: str) -> int:
    """A stand-in for the sandbox: the sum of all integers of ``Net``."""
    return sum(map(int, re.findall(r"\b\d+\b", net_of(code))))


def probe(codes: Iterable[str]) -> list[Verdict]:
    return [Verdict(Outcome.VALID, None, n_params(code)) for code in codes]


def trace(codes: Sequence[str]) -> list[tuple[Verdict, GraphSketch | None]]:
    """A stand-in: structures by the words of ``Net``; groups need wide layers."""
    found: list[tuple[Verdict, GraphSketch | None]] = []
    for code in codes:
        net, profile = net_of(code), dict.fromkeys(PROFILE, 0.0)
        profile["skips"] = float(net.count("Skip(") + net.count("Add("))
        profile["gates"] = float(net.count("Gate(") + net.count("Multiply("))
        profile["depth"] = float(net.count("conv(") + net.count("depthwise("))
        profile["grouped_convs"] = float("grouped" in net and n_params(code) > 5_000)
        profile["macs"] = 1e3 * n_params(code)
        graph = None if "opaque" in net else GraphSketch("0" * 64, b"", profile=profile)
        found.append((Verdict(Outcome.VALID, None, n_params(code)), graph))
    return found


def build(networks: list[SeedNetwork], max_params: int = 10**6, **seeds: Any) -> Any:
    return build_corpus(
        Listed(networks),
        seeds=SeedsConfig(variant="one_prompt", **seeds),
        novelty=NoveltyConfig(),
        template=TEMPLATE,
        max_params=max_params,
        probe=probe,
        trace=trace,
        count_tokens=lambda codes: [len(code) for code in codes],
    )


def classes(pairs: list[ChatPair]) -> Counter[str]:
    said = [re.search(r"Structure: (.*)\.$", p.messages[1]["content"]) for p in pairs]
    return Counter(found[1] for found in said if found)


MANY = [design(i, "conv()") for i in range(20)]
MANY += [design(20 + i, "Skip(conv())") for i in range(6)]
MANY += [design(30 + i, "Gate(mix())") for i in range(2)]


def test_prompts_say_the_class_and_some_say_any() -> None:
    pairs, report = build([design(i, "Skip(conv())") for i in range(60)])
    said = classes(pairs)
    assert set(said) == {"skip", "any"}
    assert 0 < said["any"] < 15
    assert report.classes == {"skip": 60}


def test_balance_takes_from_each_class_in_turn() -> None:
    pairs, report = build(MANY, balance="structure", most=9)
    assert report.classes_before == {"plain": 20, "skip": 6, "gate": 2}
    assert report.classes == {"plain": 4, "skip": 3, "gate": 2}
    assert len(pairs) == 9
    assert "| plain | 20 | 4 |" in report.to_markdown()
    _, level = build(MANY, balance="structure")
    assert level.classes == {"plain": 10, "skip": 6, "gate": 2}


def test_costly_networks_are_dropped_and_named() -> None:
    costs = sorted(n_params(n.code) for n in MANY)
    _, report = build(MANY, max_macs=1_000 * costs[4])
    assert sum(report.classes.values()) == 5
    assert report.dropped[f"over {1_000 * costs[4]:,} macs"] == len(MANY) - 5


def test_a_network_that_cannot_be_traced_is_dropped() -> None:
    opaque = SeedNetwork("opaque", "made", MANY[0].code + "\n    opaque = 1\n", None)
    _, report = build([*MANY[1:4], opaque], max_macs=10**9)
    assert report.dropped == {"not traced": 1}


def test_narrowing_keeps_structure_alive() -> None:
    def wide(number: int, word: str) -> SeedNetwork:
        lines = "".join(f"        x{number}_{i} = conv(900)\n" for i in range(12))
        code = linked(
            f"{HEAD}        {word} = 1\n{lines}        return [conv(64), head(classes)]\n"
        )
        return SeedNetwork(f"wide-{word}", "made", code, None)

    pairs, report = build(
        [wide(1, "grouped"), wide(2, "other")], max_params=6_000, max_macs=10**9, narrow=5
    )
    assert report.dropped["narrowed: another structure"] == 1
    assert [p.meta["source"] for p in pairs] == ["wide-other-narrow"]


def test_augmented_networks_are_marked_and_counted_apart() -> None:
    pairs, report = build(MANY[:8], augment=12)
    made = [p for p in pairs if "edits" in p.meta]
    assert 0 < len(made) <= 12
    assert report.families == {"made": 8, "made (augmented)": len(made)}
    assert all(set(p.meta["edits"]) <= set(EDITS) for p in made)
    assert len({p.meta["code_sha256"] for p in pairs}) == len(pairs)
    again, _ = build(MANY[:8], augment=12)
    assert [p.id for p in again] == [p.id for p in pairs]


def test_pairs_of_edits_are_on_the_side_of_their_parents() -> None:
    pairs, _ = build(MANY, edit_pairs=20, split=True)
    sides = {p.meta["source"]: p.meta["split"] for p in pairs if p.meta.get("type") != "edit"}
    made = [p for p in pairs if p.meta.get("type") == "edit"]
    assert made
    assert all(p.meta["split"] == sides[p.meta["source"]] for p in made)


def test_pairs_of_edits_show_the_parent_and_answer_with_the_child() -> None:
    pairs, report = build(MANY[:8], edit_pairs=10)
    made = [p for p in pairs if p.meta.get("type") == "edit"]
    assert len(made) == 10 == sum(report.edit_pairs.values())
    parents = {n.name: n.code for n in MANY}
    for pair in made:
        prompt = pair.messages[1]["content"]
        assert EDITS[pair.meta["edit"]].instruction in prompt
        shown = extract_code(prompt)
        assert shown is not None
        assert parents[pair.meta["source"]].count("conv(") > 0
        assert extract_code(pair.code) != shown
