"""The same computation written anew gives the same outputs; a neighbour gives others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from archloop.config import NoveltyConfig, SandboxConfig
from archloop.novelty import NoveltyJudge
from archloop.novelty.outputs import LENGTH, TOLERANCE, OutputIndex, Outputs, checked_outputs
from archloop.sandbox import Sandbox
from archloop.types import GraphSketch, Outcome

SHAPE, CLASSES = (3, 32, 32), 10
BODY = {
    "stem": "nn.Conv2d(in_shape[1], 8, 3, padding=1, bias=False)",
    "mid": "nn.Conv2d(8, 8, 3, stride=2, padding=1)",
    "start": "x",
    "after_stem": "x",
    "act": "torch.relu(x)",
    "before_mid": "x",
    "end": "x",
    "pooled": "x.mean((2, 3))",
    "logits": "self.head(x)",
    "more": "pass",
}


def network(**parts: str) -> str:
    """A network with two convolutions, a residual branch and a head, some parts written anew."""
    p = BODY | parts
    return f"""
import torch
import torch.nn as nn
import torch.nn.functional as F

def supported_hyperparameters():
    return {{'lr', 'momentum'}}

class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.stem = {p["stem"]}
        self.norm = nn.BatchNorm2d(8)
        self.mid = {p["mid"]}
        self.side = nn.Conv2d(8, 8, 1, stride=2)
        self.head = nn.Linear(8, out_shape[0])
        {p["more"]}

    def forward(self, x):
        x = {p["start"]}
        x = self.stem(x)
        x = {p["after_stem"]}
        x = self.norm(x)
        x = {p["act"]}
        x = {p["before_mid"]}
        x = torch.relu(self.mid(x)) + self.side(x)
        x = {p["end"]}
        x = {p["pooled"]}
        return {p["logits"]}

    def train_setup(self, prm):
        pass

    def learn(self, train_data):
        pass
"""


REWRITES = {
    "times one at run time": {"act": "torch.relu(x) * torch.ones(1).exp().log().item()"},
    "times a one from the input": {"act": "torch.relu(x) * (x.detach()[:1, :1, :1, :1] * 0 + 1)"},
    "adding zero": {"act": "torch.relu(x) + (x - x)"},
    "adding a sine of zero": {"act": "torch.relu(x) + torch.sin(torch.zeros(1))"},
    "transposed twice": {"act": "torch.relu(x.mT.flip(3).contiguous().flip(3).mT)"},
    "flipped twice": {"act": "torch.relu(x).flip(3).flip(3)"},
    "rolled there and back": {"act": "torch.relu(x).roll(1, 2).roll(-1, 2)"},
    "all rows selected": {"act": "torch.relu(x)[:, torch.arange(8)]"},
    "put together from slices": {
        "act": "torch.cat([torch.relu(x[:, :3]), torch.relu(x[:, 3:])], 1)"
    },
    "put together from one part": {"act": "torch.cat([torch.relu(x.clone())], 1)"},
    "relu of an absolute value": {"act": "torch.relu(torch.abs(torch.relu(x)))"},
    "relu by a sign": {"act": "(x + x.abs()) / 2"},
    "relu by a mask": {"act": "torch.where(x > 0, x, torch.zeros_like(x))"},
    "multiplied and divided": {"act": "torch.relu(x * 3.0) / 3.0"},
    "negated twice": {"act": "-(-torch.relu(x)).neg().neg()"},
    "squared and rooted": {"act": "torch.relu(x).square().sqrt()"},
    "average of two copies": {"act": "torch.stack([torch.relu(x)] * 2).mean(0)"},
    "shifted logits": {"logits": "self.head(x) + 7.5"},
    "logits without their mean": {
        "logits": "(lambda y: y - y.mean(1, keepdim=True))(self.head(x))"
    },
    "log-probabilities": {"logits": "F.log_softmax(self.head(x), 1)"},
    "channels permuted": {"before_mid": "x[:, [3, 1, 0, 2, 7, 6, 5, 4]]"},
    "channels in reverse": {"before_mid": "x.flip(1)"},
    "channels of the image": {"start": "x[:, [2, 1, 0]]"},
    "channels shuffled": {
        "before_mid": "x.view(x.size(0), 2, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)"
    },
    "mean by a product": {
        "pooled": "torch.einsum('bchw,hw->bc', x, torch.full(x.shape[2:], 1 / 256))"
    },
    "head by hand": {"logits": "x @ self.head.weight.t() + self.head.bias"},
    "head as a convolution": {
        "more": "self.head = nn.Conv2d(8, out_shape[0], 1)",
        "logits": "self.head(x[:, :, None, None]).flatten(1)",
    },
    "strides at the end": {
        "mid": "nn.Conv2d(8, 8, 3, padding=1)",
        "more": "self.side = nn.Conv2d(8, 8, 1)",
        "end": "x[:, :, ::2, ::2]",
    },
    "lazy": {"mid": "nn.LazyConv2d(8, 3, stride=2, padding=1)", "act": "torch.relu(x).abs()"},
    "another start": {"more": "nn.init.zeros_(self.head.weight)", "act": "torch.relu(x).abs()"},
    "other names and order": {
        "more": "self.last, self.head = self.head, None",
        "logits": "self.last(x) * torch.ones(1).item()",
    },
}

NEIGHBOURS = {
    "gelu": {"act": "F.gelu(x)"},
    "leaky relu": {"act": "F.leaky_relu(x, 0.01)"},
    "relu6": {"act": "F.relu6(x)"},
    "silu": {"act": "F.silu(x)"},
    "no activation": {"act": "x"},
    "kernel": {"mid": "nn.Conv2d(8, 8, 5, stride=2, padding=2)"},
    "stride": {
        "mid": "nn.Conv2d(8, 8, 3, padding=1)",
        "more": "self.side = nn.Conv2d(8, 8, 1)",
    },
    "dilation": {"mid": "nn.Conv2d(8, 8, 3, stride=2, padding=2, dilation=2)"},
    "padding mode": {"mid": "nn.Conv2d(8, 8, 3, stride=2, padding=1, padding_mode='reflect')"},
    "groups": {"mid": "nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)"},
    "width": {"stem": "nn.Conv2d(in_shape[1], 8, 3, padding=1)"},
    "maximum": {"pooled": "x.amax((2, 3))"},
    "activation at the end": {"end": "torch.relu(x)"},
    "shared": {"before_mid": "torch.relu(self.norm(x))"},
    "scaled": {"logits": "self.head(x) * 2"},
    "a shift for each class": {"logits": "self.head(x) + torch.arange(10.0)"},
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig(build_seconds=60)) as sandbox:
        yield sandbox


def sketch(sandbox: Sandbox, code: str) -> GraphSketch:
    verdict, found = sandbox.sketch(code, shape=SHAPE, classes=CLASSES)
    assert verdict.outcome is Outcome.VALID, verdict
    assert found is not None, verdict
    return found.graph


@pytest.fixture(scope="module")
def plain(sandbox: Sandbox) -> GraphSketch:
    return sketch(sandbox, network())


def difference(a: GraphSketch, b: GraphSketch) -> float:
    """Of outputs, in spreads of the first."""
    assert a.outputs is not None
    assert b.outputs is not None
    return max(abs(x - y) for x, y in zip(a.outputs, b.outputs, strict=True)) / a.outputs[0]


@pytest.mark.parametrize("name", REWRITES)
def test_a_rewrite_computes_the_same(sandbox: Sandbox, plain: GraphSketch, name: str) -> None:
    found = sketch(sandbox, network(**REWRITES[name]))
    assert difference(plain, found) < TOLERANCE / 5


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_neighbour_does_not(sandbox: Sandbox, plain: GraphSketch, name: str) -> None:
    found = sketch(sandbox, network(**NEIGHBOURS[name]))
    assert difference(plain, found) > 5 * TOLERANCE


def judged(plain: GraphSketch, other: GraphSketch, text: str = "b") -> tuple[bool, float]:
    judge = NoveltyJudge(NoveltyConfig(kind=("graph",)))
    judge.add_known("plain", "a = 1", plain)
    judge.start_cycle()
    scores = judge.judge("other", f"{text} = 2", other)
    assert scores.nn_graph_train is not None
    return scores.is_near_duplicate, scores.nn_graph_train


def test_the_same_outputs_are_a_duplicate_like_the_same_graph(
    sandbox: Sandbox, plain: GraphSketch
) -> None:
    rewritten = sketch(sandbox, network(**REWRITES["relu by a mask"]))
    assert rewritten.hash != plain.hash, "the graph does not tell"
    assert judged(plain, rewritten) == (True, 1.0)
    unknown = replace(rewritten, outputs=None)
    assert judged(plain, unknown)[0] is judged(unknown, plain)[0] is False
    assert not judged(plain, sketch(sandbox, network(**NEIGHBOURS["gelu"])))[0]


@pytest.mark.parametrize(
    "act",
    ["x + torch.rand_like(x)", "F.dropout(x)", "x * next(self.count)", "x * 0", "x * float('nan')"],
)
def test_no_outputs_where_they_would_not_last(sandbox: Sandbox, act: str) -> None:
    code = network(act=act, more="import itertools; self.count = itertools.count(1)")
    assert sketch(sandbox, code).outputs is None


def test_a_graph_counts_although_the_outputs_fail(sandbox: Sandbox) -> None:
    late = "(time.sleep(99), x)[1] if x.device.type == 'cpu' else x"
    with Sandbox(SandboxConfig(build_seconds=4)) as quick:
        found = sketch(quick, "import time\n" + network(act=late))
    assert found.outputs is None
    gone = "(os._exit(0), x)[1] if x.device.type == 'cpu' else x"
    assert sketch(sandbox, "import os\n" + network(act=gone)).outputs is None


def test_the_index_finds_what_is_within_the_tolerance() -> None:
    index = OutputIndex()
    known: Outputs = (2.0, *map(float, range(LENGTH - 1)))
    for id, factor in (("far", 1.1), ("near", 1.0), ("twin", 1.0), ("beside", 1.001)):
        index.add(id, tuple(x * factor for x in known))
    close = tuple(x + TOLERANCE for x in known)
    assert index.same(close) == {"near", "twin"}
    assert index.same(tuple(x + 3 * TOLERANCE for x in known)) == set()
    assert index.same((*known[:-1], known[-1] + 1)) == set()


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        [1.0] * (LENGTH - 1),
        [1.0] * 10_000,
        [0.0] * LENGTH,
        [-1.0] + [1.0] * (LENGTH - 1),
        [1] * LENGTH,
        [1.0] * (LENGTH - 1) + [float("nan")],
        [float("inf")] + [1.0] * (LENGTH - 1),
        ["1.0"] * LENGTH,
    ],
)
def test_odd_outputs_of_a_process_are_none(value: object) -> None:
    assert checked_outputs(value) is None
