"""Structure profiles of networks that are known by construction."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from archloop.code.linking import linked
from archloop.config import SandboxConfig
from archloop.novelty.structure import (
    PLAIN,
    STRUCTURES,
    UNTRACED,
    macs_cell,
    niche,
    structure_class,
)
from archloop.sandbox.host.client import Sandbox
from archloop.types import PROFILE, Outcome

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
    assert set(found.graph.profile) == {*PROFILE, "macs"}
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
        # Scales and positions are parameters.
        (
            "x * self.scale + self.bias",
            "self.scale = nn.Parameter(torch.ones(16, 1, 1)); "
            "self.bias = nn.Parameter(torch.zeros(1, 16, 16, 16))",
            {},
        ),
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
        # Halves of one tensor: a gated linear unit, and a shuffle block.
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


def test_recurrent_layers_are_counted(sandbox: Sandbox) -> None:
    top = own(
        "self.cell(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).reshape(x.shape)",
        "self.cell = nn.GRU(16, 16, batch_first=True)",
    )
    found = profile_of(sandbox, "Own()", top)
    assert found["depth"] >= 3


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
    assert cells == sorted(cells, key=cells.index)
