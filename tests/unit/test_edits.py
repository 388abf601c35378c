"""Structural edits: source in, source out, and what each claims."""

from __future__ import annotations

import ast
import random
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from archloop.code.edits import EDITS, edited
from archloop.code.edits.chains import chains
from archloop.code.edits.conv_block import Conv
from archloop.code.edits.verify import broken_claim
from archloop.code.linking import linked, unlinked
from archloop.code.policy import check
from archloop.config import SandboxConfig
from archloop.corpus.seeds.balance import even
from archloop.corpus.seeds.children import Limits, Parent, children, measures_of
from archloop.corpus.seeds.designs import DesignSource
from archloop.sandbox.host.client import Sandbox
from archloop.types import GraphSketch, Outcome, Verdict
from conftest import network

HEAD = "from archloop.blocks import *\n\nclass Net(Design):\n\n    def layers(self, classes):\n"
DESIGN = (
    HEAD
    + """        return [conv(32), conv(), nn.MaxPool2d(2), conv(64), Skip(conv()), conv(), \
nn.MaxPool2d(2), conv(96, stride=2), conv(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), \
nn.LazyLinear(128), nn.ReLU(), nn.LazyLinear(classes)]
"""
)
TORCH = network(
    init="""self.body = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(16 * 4 * 4, out_shape[0])""",
).replace("self.norm(self.conv(x))", "self.body(self.norm(self.conv(x)))")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig(build_seconds=60)) as sandbox:
        yield sandbox


def sketched(sandbox: Sandbox, code: str) -> tuple[Verdict, GraphSketch | None]:
    verdict, found = sandbox.sketch(code, shape=(3, 32, 32), classes=10)
    return verdict, None if found is None else found.graph


def measured(sandbox: Sandbox, code: str) -> dict[str, float]:
    verdict, graph = sketched(sandbox, code)
    assert verdict.outcome is Outcome.VALID, verdict.error
    measures = measures_of(verdict, graph)
    assert measures is not None
    return measures


@pytest.fixture(scope="module")
def parent(sandbox: Sandbox) -> Parent:
    code = linked(DESIGN.replace("conv(64)", "conv(64), nn.MaxPool2d(2)"))
    return Parent("design", code, measured(sandbox, code))


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_what_it_claims_to_be(sandbox: Sandbox, parent: Parent, name: str) -> None:
    edit = EDITS[name]
    source = parent.code
    if name == "add_stage":
        source = linked(unlinked(source).replace("nn.MaxPool2d(2), conv(96", "conv(96"))
    before = measured(sandbox, source)
    code = edited(source, edit, random.Random(0))
    assert code is not None
    assert check(code) is None
    assert code != source
    after = measured(sandbox, code)
    assert broken_claim(edit, before, after) is None, unlinked(code)
    assert edit.instruction.endswith(".")


@pytest.mark.parametrize(
    "name",
    [
        *("add_residual", "add_gate", "separate", "group", "branch", "dilate", "factor", "deepen"),
        *("pool_to_stride", "multiply", "activate", "add_skip"),
    ],
)
def test_edits_apply_to_networks_without_blocks(sandbox: Sandbox, name: str) -> None:
    before = measured(sandbox, TORCH)
    code = edited(TORCH, EDITS[name], random.Random(1))
    assert code is not None
    assert "archloop" not in code
    assert "self.norm" in code, "the author's names are kept"
    after = measured(sandbox, code)
    assert broken_claim(EDITS[name], before, after) is None, code


def test_a_broken_claim_is_named() -> None:
    edit = EDITS["add_skip"]
    assert broken_claim(edit, {"skips": 1}, {"skips": 2}) is None
    fault = broken_claim(edit, {"skips": 1}, {"skips": 1})
    assert fault == "skips should grow, and went from 1 to 1"
    assert broken_claim(edit, {"skips": 1}, {}) == "skips was not measured"


def test_an_edit_without_a_place_is_none() -> None:
    plain = HEAD + "        return [conv(8), head(classes)]\n"
    for name in ("remove_skip", "drop_stage", "pool_to_stride", "attend"):
        assert edited(linked(plain), EDITS[name], random.Random(0)) is None


def test_chains_are_found_however_layers_are_listed() -> None:
    source = """
self.a = nn.Conv2d(3, 8, 3)
layers = [nn.ReLU()]
layers += [nn.Conv2d(8, 8, 3), nn.ReLU()]
layers.append(nn.MaxPool2d(2))
layers.extend([nn.Dropout(0.5)])
self.b = nn.Sequential(nn.Conv2d(8, 8, 3), Skip(conv()))
self.c = nn.Sequential(*layers)
self.sizes = [1, 2, 3]
self.loss = nn.CrossEntropyLoss()
"""
    found = [
        (c.inside, [ast.unparse(layer) for layer in c.layers]) for c in chains(ast.parse(source))
    ]
    assert sorted(found) == sorted(
        [
            ("one", ["nn.Conv2d(3, 8, 3)"]),
            ("list", ["nn.ReLU()"]),
            ("list", ["nn.Conv2d(8, 8, 3)", "nn.ReLU()"]),
            ("one", ["nn.MaxPool2d(2)"]),
            ("list", ["nn.Dropout(0.5)"]),
            ("Sequential", ["nn.Conv2d(8, 8, 3)", "Skip(conv())"]),
            ("Skip", ["conv()"]),
        ]
    )


def read(text: str) -> Conv:
    found = Conv.read(ast.parse(text, mode="eval").body)
    assert found is not None
    return found


def test_convolutions_are_read_and_written_in_both_spellings() -> None:
    block = read("conv(32, 5, groups=4)")
    assert (block.width, block.kernel, block.is_plain, block.keeps_width) == (32, 5, False, False)
    assert ast.unparse(block.with_(groups=None).sized(3).write()) == "conv(32)"
    assert ast.unparse(block.with_(width=None).write()) == "conv(kernel=5, groups=4)"
    own = read("nn.Conv2d(8, 8, kernel_size=3, padding=1)")
    assert (own.width, own.kernel, own.is_plain, own.keeps_width) == (8, 3, True, True)
    assert ast.unparse(own.sized((1, 3)).write()) == "nn.Conv2d(8, 8, (1, 3), padding=(0, 1))"
    assert ast.unparse(own.sized(3, 2).write()) == "nn.Conv2d(8, 8, 3, padding=2, dilation=2)"
    assert not read("nn.Conv2d(8, 8, 3)").is_plain
    assert Conv.read(ast.parse("nn.Linear(3, 4)", mode="eval").body) is None
    assert Conv.read(ast.parse("nn.Conv2d(*sizes)", mode="eval").body) is None


def test_designs_are_the_same_each_time_and_nearly_all_are_networks(sandbox: Sandbox) -> None:
    designs = list(DesignSource(40, 3).networks())
    assert designs == list(DesignSource(40, 3).networks())
    assert designs != list(DesignSource(40, 4).networks())
    assert DesignSource(40, 3).digest != DesignSource(41, 3).digest
    assert all(check(d.code) is None for d in designs)
    outcomes = Counter(sketched(sandbox, d.code)[0].outcome for d in designs)
    assert outcomes[Outcome.VALID] >= 35
    assert len({d.family for d in designs}) > 20


def test_children_keep_their_claims_and_the_limits(sandbox: Sandbox, parent: Parent) -> None:
    def trace(codes: Sequence[str]) -> list[tuple[Verdict, GraphSketch | None]]:
        return [sketched(sandbox, code) for code in codes]

    limits = Limits(int(parent.measures["n_params"] * 1.2), None)
    found, faults = children([parent], 12, random.Random(0), trace, limits)
    assert len(found) == 12
    assert len({child.code for child in found}) == 12
    assert len({child.edit.name for child in found}) >= 8
    for child in found:
        assert broken_claim(child.edit, parent.measures, child.measures) is None
        assert child.measures["n_params"] <= parent.measures["n_params"] * 1.2
    assert all(": " in fault for fault in faults)
    again, _ = children([parent], 12, random.Random(0), trace, limits)
    assert [c.code for c in again] == [c.code for c in found]


def test_classes_are_sampled_evenly() -> None:
    items = ["a1", "a2", "a3", "a4", "b1", "c1", "c2"]
    assert even(items, lambda item: item[0]) == ["a1", "a2", "a3", "b1", "c1", "c2"]
    assert even(items, lambda item: item[0], 5) == ["a1", "a2", "b1", "c1", "c2"]
    assert even(items, lambda item: item[0], 2) == ["a1", "b1"]
    assert even(items, lambda item: item[0], 99) == items
    assert even([], len) == []
