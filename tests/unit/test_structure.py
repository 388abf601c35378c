"""Structure profiles of networks that are known by construction."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archloop.code.linking import linked
from archloop.config import SandboxConfig
from archloop.novelty.graph import canonical, checked, graph_hash
from archloop.novelty.profile import profile
from archloop.novelty.structure import (
    PLAIN,
    STRUCTURES,
    UNTRACED,
    cell_order,
    checked_profile,
    macs_cell,
    niche,
    structure_class,
)
from archloop.sandbox.host.client import Sandbox
from archloop.types import PROFILE, Outcome

PAIRS = Path(__file__).parents[1] / "data" / "graph_pairs.jsonl.gz"
DESIGN = """from archloop.blocks import *
{top}

class Net(Design):

    def layers(self, classes):
        return [conv(16), nn.MaxPool2d(2), {layers}, head(classes)]
"""
OWN = "class Own(nn.Module):\n    def __init__(self):\n        super().__init__()\n        {init}\n"
OWN += "    def forward(self, x):\n        return {value}\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig(build_seconds=60)) as sandbox:
        yield sandbox


def profile_of(sandbox: Sandbox, layers: str, top: str = "") -> dict[str, float]:
    code = linked(DESIGN.format(layers=layers, top=top))
    verdict, found = sandbox.sketch(code, shape=(3, 32, 32), classes=10)
    assert verdict.outcome is Outcome.VALID, verdict.error
    assert found is not None and found.graph.profile is not None
    assert found.graph.profile.keys() - {"macs"} == set(PROFILE)
    return found.graph.profile


def own(value: str, init: str = "pass") -> str:
    return OWN.format(init=init, value=value)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("conv()", {}),
        ("conv(32), nn.Dropout(0.2), nn.GELU(), nn.Softmax(1)", {}),
        ("Skip(conv())", {"skips": 1}),
        ("Skip(conv(), Skip(conv()))", {"skips": 2}),
        ("Add(conv(), conv(kernel=1), conv(kernel=5))", {"skips": 2}),
        ("Join(nn.Identity(), conv(8))", {"joins": 1}),
        ("Join(conv(8), Join(conv(8), conv(8)))", {"joins": 1}),
        ("Gate(nn.AdaptiveAvgPool2d(1), mix())", {"gates": 1}),
        ("Gate(mix(1))", {"gates": 1}),
        ("Multiply(conv(), conv())", {"gates": 1}),
        ("conv(32, groups=4)", {"grouped_convs": 1}),
        ("depthwise()", {"depthwise_convs": 1}),
        ("depthwise(dilation=2)", {"depthwise_convs": 1, "dilated_convs": 1}),
        ("conv(dilation=2)", {"dilated_convs": 1}),
        ("conv(kernel=1, dilation=2)", {}),
        ("conv(kernel=(1, 7)), conv(kernel=(7, 1))", {"asymmetric_convs": 2}),
        ("Attention()", {"attentions": 1}),
        ("Skip(Attention(2)), Skip(Attention(4))", {"attentions": 2, "skips": 2}),
    ],
)
def test_structures_are_counted(sandbox: Sandbox, layers: str, expected: dict[str, float]) -> None:
    found = profile_of(sandbox, layers)
    counted = {name: found[name] for name in STRUCTURES.values() if found[name]}
    assert counted == expected


@pytest.mark.parametrize(
    ("value", "init", "expected"),
    [
        # Activations, written out.
        ("x * torch.sigmoid(x)", "pass", {}),
        ("x * torch.tanh(nn.functional.softplus(x))", "pass", {}),
        ("x * torch.clamp(x + 3, 0, 6) / 6", "pass", {}),
        ("0.5 * x * (1 + torch.erf(x / 1.41421356))", "pass", {}),
        ("x + torch.relu(x)", "pass", {}),
        # Normalisations, written out.
        ("(x - x.mean(1, keepdim=True)) * torch.rsqrt(x.var(1, keepdim=True) + 1e-5)", "pass", {}),
        ("x * torch.softmax(x, 1)", "pass", {}),
        ("x * torch.sigmoid(self.norm(x))", "self.norm = nn.BatchNorm2d(16)", {}),
        # Masks and noise do not depend on the image, though they take its shape.
        ("nn.functional.dropout2d(x, 0.5, training=True)", "pass", {}),
        ("x * (torch.rand_like(x) > 0.1).float() / 0.9", "pass", {}),
        ("x * x.new_empty(x.shape).bernoulli_(0.9)", "pass", {}),
        ("x + 0.1 * torch.randn_like(x)", "pass", {}),
        # Scales and positions are parameters.
        (
            "x * self.scale + self.bias",
            "self.scale = nn.Parameter(torch.ones(16, 1, 1)); "
            "self.bias = nn.Parameter(torch.zeros(1, 16, 16, 16))",
            {},
        ),
        (
            "torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2)], 2)[:, :, 1:]"
            ".reshape(x.shape)",
            "self.token = nn.Parameter(torch.ones(1, 16, 1))",
            {},
        ),
        ("torch.cat(x.chunk(4, 1), 1) * torch.sigmoid(x)", "pass", {}),
        ("torch.cat(x.chunk(4, 1)[::-1], 1)", "pass", {"joins": 1}),
        ("torch.cat(x.chunk(4, 1)[1:], 1)", "pass", {"joins": 1}),
        # One path, cut and put together without anything in between, or a channel shuffle.
        (
            "torch.maximum(*nn.functional.conv2d(x, self.w).chunk(2, 1))",
            "self.w = nn.Parameter(torch.ones(32, 16, 1, 1))",
            {},
        ),
        ("x.view(x.size(0), 4, 4, 16, 16).transpose(1, 2).reshape(x.shape)", "pass", {}),
        # A path with weights on one side.
        (
            "x + self.scale * self.conv(x)",
            "self.scale = nn.Parameter(torch.ones(1)); self.conv = nn.LazyConv2d(16, 1)",
            {"skips": 1},
        ),
        ("nn.functional.avg_pool2d(x, 3, 1, 1) - x", "pass", {"skips": 1}),
        ("torch.cat([torch.relu(x), torch.relu(-x)], 1)", "pass", {"joins": 1}),
        (
            "torch.stack([self.conv(x), self.other(x)]).mean(0)",
            "self.conv = nn.LazyConv2d(16, 1); self.other = nn.LazyConv2d(16, 3, padding=1)",
            {"skips": 1},
        ),
        (
            "(torch.stack([self.conv(x), self.other(x)], 1) * self.weights).sum(1)",
            "self.conv = nn.LazyConv2d(16, 1); self.other = nn.LazyConv2d(16, 3, padding=1); "
            "self.weights = nn.Parameter(torch.ones(2, 1, 1, 1))",
            {"skips": 1},
        ),
        (
            "torch.cat([self.conv(x), self.other(x)], 1).view(-1, 2, 16, 16, 16).sum(1)",
            "self.conv = nn.LazyConv2d(16, 1); self.other = nn.LazyConv2d(16, 3, padding=1)",
            {"skips": 1},
        ),
        # Channels of two branches that alternate are joined, whatever is pooled later.
        (
            "torch.stack([self.conv(x), self.other(x)], 2).reshape(-1, 32, 16, 16)",
            "self.conv = nn.LazyConv2d(16, 1); self.other = nn.LazyConv2d(16, 3, padding=1)",
            {"joins": 1},
        ),
        (
            "torch.stack([self.conv(x), self.other(x)]).amax(0)",
            "self.conv = nn.LazyConv2d(16, 1); self.other = nn.LazyConv2d(16, 3, padding=1)",
            {"joins": 1},
        ),
        # A highway: one operator adds and multiplies.
        (
            "torch.lerp(x, self.conv(x), torch.sigmoid(self.other(x)))",
            "self.conv = nn.LazyConv2d(16, 1); self.other = nn.LazyConv2d(16, 3, padding=1)",
            {"skips": 1, "gates": 1},
        ),
        # Halves of one tensor: a gated linear unit, and a shuffle block.
        ("nn.functional.glu(self.conv(x), 1)", "self.conv = nn.LazyConv2d(32, 1)", {"gates": 1}),
        ("(lambda a, b: a * torch.sigmoid(b))(*x.chunk(2, 1))", "pass", {"gates": 1}),
        (
            "(lambda a, b: torch.cat([a, self.conv(b)], 1))(*x.chunk(2, 1))",
            "self.conv = nn.LazyConv2d(8, 1)",
            {"joins": 1},
        ),
        # Linear attention, and a product of features with themselves.
        (
            "(lambda f: (f @ (f.transpose(1, 2) @ f) / 256).reshape(x.shape))(x.flatten(2))",
            "pass",
            {"attentions": 1},
        ),
        (
            "nn.functional.scaled_dot_product_attention(x, x, self.conv(x))",
            "self.conv = nn.LazyConv2d(16, 1)",
            {"attentions": 1},
        ),
        # Two attentions without weights between them, and a bilinear layer.
        (
            "(lambda a: a(a(x.flatten(2))).reshape(x.shape))"
            "(lambda t: torch.softmax(t @ t.transpose(1, 2), -1) @ t)",
            "pass",
            {"attentions": 2},
        ),
        (
            "self.both(x.mean((2, 3)), x.amax((2, 3)))[:, :, None, None]",
            "self.both = nn.Bilinear(16, 16, 16)",
            {"attentions": 1},
        ),
        # A convolution with weights that depend on the image.
        (
            "nn.functional.conv2d(x, self.kernels(x.mean((0, 2, 3))).view(16, 16, 1, 1))",
            "self.kernels = nn.Linear(16, 256)",
            {"attentions": 1},
        ),
    ],
)
def test_what_is_written_out_by_hand_is_known(
    sandbox: Sandbox, value: str, init: str, expected: dict[str, float]
) -> None:
    found = profile_of(sandbox, "conv(), Own()", own(value, init))
    counted = {name: found[name] for name in STRUCTURES.values() if found[name]}
    assert counted == expected


def test_the_rest_of_a_profile(sandbox: Sandbox) -> None:
    found = profile_of(sandbox, "Skip(conv(), conv()), conv(32, stride=2)")
    assert found["depth"] == 5
    assert found["norms"] == 4
    assert found["global_pools"] == 1
    weights = 3 * 16 * 9 + 2 * 16 * 16 * 9 + 16 * 32 * 9 + 2 * (3 * 16 + 32)
    assert found["linear_share"] == pytest.approx(320 / (weights + 330))
    assert found["macs"] == 432 * 1024 + 2 * 2304 * 256 + 4608 * 64 + 320


SEQUENCE = "(lambda s: ({}).transpose(1, 2).reshape(x.size(0), -1, 4, 4))"
SEQUENCE += "(nn.functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2))"


@pytest.mark.parametrize(
    ("value", "init", "layers"),
    [
        ("self.cell(s)[0]", "self.cell = nn.RNN(16, 16, batch_first=True)", 1),
        ("self.cell(s)[0]", "self.cell = nn.GRU(16, 16, 2, batch_first=True)", 2),
        ("self.cell(s)[0]", "self.cell = nn.LSTM(16, 8, batch_first=True, bidirectional=True)", 2),
        ("self.cell(s)[1][0][0].unsqueeze(1)", "self.cell = nn.LSTM(16, 256, batch_first=True)", 1),
    ],
)
def test_a_recurrent_layer_is_one_layer_without_other_structures(
    sandbox: Sandbox, value: str, init: str, layers: int
) -> None:
    found = profile_of(sandbox, "Own()", own(SEQUENCE.format(value), init))
    assert found["recurrents"] == layers
    assert [name for name in STRUCTURES.values() if found[name]] == []
    assert found["depth"] <= 2 + 2 * layers


def test_what_is_added_to_a_recurrent_layer_is_a_skip(sandbox: Sandbox) -> None:
    init = "self.cell = nn.GRU(16, 16, batch_first=True)"
    found = profile_of(sandbox, "Own()", own(SEQUENCE.format("s + self.cell(s)[0]"), init))
    assert (found["recurrents"], found["skips"], found["gates"], found["joins"]) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("value", "pools"),
    [
        # The classifier pools what is not yet one value a channel.
        ("x.mean((2, 3), keepdim=True)", 1),
        ("x.flatten(2).mean(2)[:, :, None, None]", 1),
        ("nn.functional.avg_pool2d(x, 16)", 1),
        ("nn.functional.avg_pool2d(x, 8)", 1),
        ("x * torch.sigmoid(x.amax((2, 3), keepdim=True))", 2),
        ("x * torch.sigmoid(x.mean(1, keepdim=True))", 1),
        ("x - x.mean((1, 2, 3), keepdim=True)", 1),
    ],
)
def test_global_pools_are_counted(sandbox: Sandbox, value: str, pools: int) -> None:
    assert profile_of(sandbox, "Own()", own(value))["global_pools"] == pools


def test_the_profile_is_that_of_what_is_computed(sandbox: Sandbox) -> None:
    """Edits of LEMUR's networks that keep the graph's hash keep the profile."""
    rows = [json.loads(line) for line in gzip.decompress(PAIRS.read_bytes()).splitlines()]
    traced: dict[str, tuple[str, dict[str, float]]] = {}

    def of(code: str) -> tuple[str, dict[str, float]]:
        if code not in traced:
            _, graph = sandbox.trace(code, shape=(3, 32, 32), classes=10)
            assert graph is not None
            traced[code] = graph_hash(graph), profile(canonical(graph))
        return traced[code]

    same = [row for row in rows if row["same"]][::3]
    assert len({row["kind"] for row in same}) >= 12
    assert [row["kind"] for row in same if of(row["a"]) != of(row["b"])] == []
    assert len({structure_class(measures) for _, measures in traced.values()}) >= 6


def test_the_profile_of_any_graph_is_one() -> None:
    """Whatever a network reports as its graph, counting raises nothing and gives numbers."""
    rng = random.Random(5)
    operators = ["add", "mul", "lerp", "addcmul", "glu", "mean", "sum", "cumsum", "cat", "stack"]
    operators += ["mm", "bmm", "_trilinear", "convolution", "native_batch_norm", "rand_like"]
    names = ["self", "other", "mat2", "input", "weight", "tensors", "dim", "dims", "groups"]
    names += ["dilation", "stride", "padding", "output_padding"]
    shapes = [[], [0], ["1N"], ["1N", 3], ["2N", 3, 4], ["1N", 3, 4, 4], [2, "1N", 3, 4, 4]]

    def value(places: int) -> Any:
        if rng.random() < 0.7:
            return {"input": [rng.randrange(places), 0]}
        several = [{"input": [rng.randrange(places), 0]} for _ in range(rng.randint(0, 3))]
        return rng.choice([several, 0, 1, -2, 7, None, True, "1N", [1, 1], [2, 3], [0, 9]])

    for _ in range(3000):
        nodes: list[Any] = [["input", [], [[["1N", 3, 4, 4], "float32"]]]]
        for number in range(1, rng.randint(3, 9)):
            given = [[name, value(number)] for name in rng.sample(names, rng.randint(1, 5))]
            nodes.append([rng.choice(operators), given, [[rng.choice(shapes), "float32"]]])
        found = profile(canonical(checked({"nodes": nodes, "output": [len(nodes) - 1, 0]})))
        assert checked_profile(found) == found


def test_classes_and_niches_are_read_from_measures() -> None:
    nothing = dict.fromkeys(STRUCTURES.values(), 0.0)
    assert structure_class(nothing) == PLAIN
    assert structure_class(nothing | {"gates": 2.0, "skips": 1.0}) == "skip+gate"
    assert structure_class({"macs": 1.0}) is None
    assert niche({"macs": 1.0}) == UNTRACED
    assert niche(nothing) == "plain @ uncounted"
    assert niche(nothing | {"macs": 15e6}) == "plain @ 8-17M"


def test_cells_of_cost_follow_each_other() -> None:
    edges = [0, 1, *(2**n for n in range(18, 34))]
    cells = [macs_cell(edge) for edge in edges]
    assert len(dict.fromkeys(cells)) == 12
    assert cells == sorted(cells, key=cells.index) == sorted(cells, key=cell_order)
    assert sorted(["uncounted", *reversed(cells)], key=cell_order) == [*cells, "uncounted"]
