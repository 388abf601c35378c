from __future__ import annotations

import copy
import gzip
import json
import random
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from archloop.config import SandboxConfig
from archloop.evaluation.graphs import graphs_of, traced_before
from archloop.novelty import (
    GraphError,
    graph_distance,
    graph_hash,
    graph_shingles,
    jaccard,
    operator_motifs,
    shingles,
    sketch_graph,
)
from archloop.novelty.graph import (
    MAX_NODES,
    MAX_SHINGLES,
    canonical,
    checked,
    checked_sketch,
    parse,
)
from archloop.novelty.macs import cost, macs
from archloop.novelty.rules import _RULES
from archloop.progress import Silent
from archloop.sandbox import Sandbox
from archloop.types import Outcome
from conftest import HOSTILE, network

PAIRS = Path(__file__).parents[1] / "data" / "graph_pairs.jsonl.gz"
SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig(build_seconds=60)) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def plain(sandbox: Sandbox) -> dict[str, Any]:
    return traced(sandbox, network())


def traced(sandbox: Sandbox, code: str) -> dict[str, Any]:
    verdict, graph = sandbox.trace(code, shape=SHAPE, classes=10)
    assert verdict.outcome is Outcome.VALID, verdict
    assert graph is not None, verdict.error
    assert verdict.error is None
    return graph


def test_the_cache_keeps_what_is_traced_and_nothing_that_another_try_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHLOOP_CACHE", str(tmp_path))
    size = {"shape": SHAPE, "classes": 10}
    broken, slow = network(forward="raise ValueError"), network(init="while True: pass")
    config = SandboxConfig(build_seconds=5)
    assert traced_before([network()], **size) is None
    found = graphs_of([network(), broken, slow], config=config, observer=Silent(), **size)
    assert [graph is None for graph in found] == [False, True, True]
    assert traced_before([broken, network()], **size) == [None, found[0]]
    assert traced_before([network(), slow], **size) is None
    (file,) = (tmp_path / "graphs").iterdir()
    assert version("torch") in file.name


def body(*lines: str, init: str = "") -> str:
    """A network whose forward pass starts with these lines."""
    indent = "\n        "
    return network(init=init.replace("\n", indent), forward=indent.join(lines))


SAME = {
    "comments": ("", "# nothing"),
    "a dead layer": ("", "unused = torch.tanh(x) @ torch.ones(32, 5)"),
    "no operation": ("", "x = nn.Identity()(x * 1.0 + 0).clone().contiguous().detach()"),
    "dropout": ("", "x = nn.functional.dropout(nn.Dropout(0.5).eval()(x), 0.1, self.training)"),
    "a shape there and back": (
        "",
        "x = x.reshape(-1, 32, 32, 3).flatten(2).view(len(x), 3, 32, 32)",
    ),
    "axes there and back": ("", "x = x.permute(0, 2, 3, 1).transpose(1, 3).transpose(2, 3)"),
    "module or function": ("x = nn.ReLU()(x)", "x = nn.functional.relu(x)"),
    "another spelling": ("x = torch.relu(x)", "x = x.clamp(min=0)"),
    "twice what once does": ("x = torch.relu(x)", "x = torch.relu(torch.relu(x))"),
    "silu": ("x = nn.functional.silu(x)", "x = torch.sigmoid(x) * x"),
    "in place": ("x = torch.relu(x + 1)", "x = x + 1; x.relu_()"),
    "order of summands": ("x = torch.sin(x) + torch.cos(x)", "x = torch.cos(x) + torch.sin(x)"),
    "order of statements": (
        "a = torch.sin(x); b = torch.cos(x); x = a / b",
        "b = torch.cos(x); a = torch.sin(x); x = a / b",
    ),
    "a loop": (
        "x = torch.sin(torch.sin(torch.sin(x)))",
        "for _ in range(3): x = torch.sin(x)",
    ),
    "a branch on shapes": ("", "x = x if x.shape[1] == 3 else x[:, :1]"),
    "the same twice": ("x = torch.sin(x) + torch.sin(x)", "y = torch.sin(x); x = y + y"),
    "chunks": ("a, b, c = x.chunk(3, 1)", "a, b, c = x[:, :1], x[:, 1:2], x.narrow(1, 2, 1)"),
    "nested cat": (
        "x = torch.cat([torch.cat([x, x], 1), x], 1)[:, 3:6]",
        "x = torch.cat([x, x, x], -3)[:, 3:][:, :3]",
    ),
    "mean": (
        "x = x + nn.AdaptiveAvgPool2d(1)(x)",
        "x = x + x.mean(3).mean(2)[:, :, None, None]",
    ),
    "pooling over everything": (
        "x = x + nn.AvgPool2d(32)(x)",
        "x = x + x.mean((-1, -2), keepdim=True)",
    ),
    "default stride": ("x = nn.MaxPool2d(2)(x)", "x = nn.functional.max_pool2d(x, 2, stride=2)"),
    "a write through a view": ("x = x * 2", "y = x.view(-1); y.mul_(2)"),
    "a write through two views": (
        "x = torch.relu(x)",
        "x.permute(0, 2, 3, 1).transpose(1, 2).relu_()",
    ),
    "a view of what is written later": (
        "x = x + 1",
        "y = x.transpose(1, 2); z = y.transpose(1, 2); x.add_(1); x = z",
    ),
    "a copy": ("x = torch.sin(x)", "y = torch.zeros_like(x); y.copy_(x); x = y.sin_()"),
    "values": ("", "x = x if x.sum().item() < 1e9 else x * 2"),
    "no padding": ("", "x = torch.constant_pad_nd(x, (0, 0, 0, 0))"),
    "pooling of one": ("", "x = nn.functional.avg_pool2d(nn.MaxPool2d(1)(x), 1)"),
}
for name, (one, other) in list(SAME.items()):
    if name == "chunks":
        SAME[name] = (
            one + "; x = torch.cat([b, c, a], 1)",
            other + "; x = torch.cat([b, c, a], 1)",
        )

DIFFERENT = {
    "an activation": ("x = torch.relu(x)", "x = nn.functional.elu(x)"),
    "a slope": ("x = nn.LeakyReLU(0.1)(x)", "x = nn.LeakyReLU(0.2)(x)"),
    "a number": ("x = x * 2", "x = x * 3"),
    "order": ("x = torch.sin(x).add(1)", "x = torch.sin(x + 1)"),
    "order of operands": ("x = x / (x + 1)", "x = (x + 1) / x"),
    "order of writes": ("x.mul_(2); x.add_(1)", "x.add_(1); x.mul_(2)"),
    "where it is written": ("x[:, 0].mul_(2)", "x[:, 1].mul_(2)"),
    "written or not": ("x[:, 0].mul_(2)", "x[:, 0].mul(2)"),
    "pooling": ("x = nn.MaxPool2d(2)(x)", "x = nn.AvgPool2d(2)(x)"),
    "pooling over everything": ("x = x + x.amax((2, 3), True)", "x = x + x.mean((2, 3), True)"),
    "pooling stride": ("x = nn.MaxPool2d(3, 2)(x)", "x = nn.MaxPool2d(3, 3)(x)"),
    "a skip": ("x = torch.sin(x)", "x = x + torch.sin(x)"),
    "an axis": ("x = x.softmax(2)", "x = x.softmax(3)"),
    "a step": ("x = x[:, :, ::2]", "x = x[:, :, 1::2]"),
    "order of parts": ("x = torch.cat([x[:, 1:], x[:, :1]], 1)", "x = x"),
    "axes": ("x = x.transpose(2, 3)", ""),
    "a literal": ("x = x * torch.tensor(2.0)", "x = x * torch.tensor(3.0)"),
    "random numbers": ("a = torch.rand(1); x = x + a + a", "x = x + torch.rand(1) + torch.rand(1)"),
    "what a distribution is around": (
        "x = torch.normal(torch.sin(x), 0.1)",
        "x = torch.normal(torch.cos(x), 0.1)",
    ),
    "a shift by padding": ("x = nn.functional.pad(x, (1, -1))", ""),
    "a pooling's divisor": ("x = nn.functional.avg_pool2d(x, 1, divisor_override=2)", ""),
    "batch or width": ("x = x / x.shape[0]", "x = x / x.shape[1]"),
}


@pytest.mark.parametrize("name", SAME)
def test_equal_computations_have_one_hash(sandbox: Sandbox, name: str) -> None:
    one, other = (traced(sandbox, body(line)) for line in SAME[name])
    assert graph_hash(one) == graph_hash(other), (canonical(one), canonical(other))
    assert graph_distance(one, other) == 0.0


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_computations_have_two(sandbox: Sandbox, name: str) -> None:
    one, other = (traced(sandbox, body(line)) for line in DIFFERENT[name])
    assert graph_hash(one) != graph_hash(other)
    assert 0.0 < graph_distance(one, other) < 1.0
    assert graph_distance(one, other) == graph_distance(other, one)


LAYERS_SAME = {
    "padding by name": (
        "self.a = nn.Conv2d(3, 3, 3, padding=1)",
        "self.a = nn.Conv2d(3, 3, (3, 3), padding='same')",
    ),
    "lazy": ("self.a = nn.Conv2d(3, 6, 3)", "self.a = nn.LazyConv2d(6, 3)"),
    "lazy norm": ("self.a = nn.BatchNorm2d(3)", "self.a = nn.LazyBatchNorm2d()"),
    "sequential": (
        "self.a = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())",
        "self.b = nn.Conv2d(3, 6, 3); self.a = lambda x: torch.relu(self.b(x))",
    ),
    "a layer by hand": (
        "self.a = nn.Linear(32, 8)",
        "self.w = nn.Parameter(torch.rand(8, 32)); self.b = nn.Parameter(torch.zeros(8))\n"
        "self.a = lambda x: x @ self.w.t() + self.b",
    ),
    "what a layer is given": (
        "self.b = nn.Linear(32, 8); self.a = lambda x: self.b(x.transpose(2, 3).contiguous())",
        "self.b = nn.Linear(32, 8); self.a = lambda x: self.b(x.transpose(2, 3))",
    ),
    "values in construction": (
        "self.b = nn.Linear(32, 8); self.a = self.b",
        "[v.item() for v in torch.linspace(0, 1, 3)]; self.a = nn.Linear(32, 8)",
    ),
    "attention": (
        "self.b = nn.MultiheadAttention(32, 4, batch_first=True)\n"
        "def attend(x):\n    y = x[:, 0]\n"
        "    return x * self.b(y, y, y)[0][:, None]\nself.a = attend",
        "self.b = nn.MultiheadAttention(32, 4, batch_first=True)\n"
        "def attend(x):\n    y = x.select(1, 0)\n"
        "    return x * self.b(y, y, y, need_weights=True)[0].unsqueeze(1)\nself.a = attend",
    ),
}
LAYERS_DIFFERENT = {
    "one kernel": (
        "self.a = nn.Conv2d(3, 6, 3, padding=1)",
        "self.a = nn.Conv2d(3, 6, 5, padding=2)",
    ),
    "one width": ("self.a = nn.Conv2d(3, 6, 3)", "self.a = nn.Conv2d(3, 7, 3)"),
    "one inner width": (
        "self.a = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1))",
        "self.a = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1))",
    ),
    "stride": ("self.a = nn.Conv2d(3, 6, 3)", "self.a = nn.Conv2d(3, 6, 3, stride=2)"),
    "groups": ("self.a = nn.Conv2d(3, 6, 3)", "self.a = nn.Conv2d(3, 6, 3, groups=3)"),
    "dilation": (
        "self.a = nn.Conv2d(3, 6, 3, padding=1)",
        "self.a = nn.Conv2d(3, 6, 3, padding=2, dilation=2)",
    ),
    "bias": ("self.a = nn.Conv2d(3, 6, 3)", "self.a = nn.Conv2d(3, 6, 3, bias=False)"),
    "eps": ("self.a = nn.BatchNorm2d(3)", "self.a = nn.BatchNorm2d(3, eps=1e-3)"),
    "a shared layer": (
        "b = nn.Linear(32, 32); self.a = nn.Sequential(b, b)",
        "self.a = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))",
    ),
    "which layer is shared": (
        "a, b = nn.Linear(32, 32), nn.Linear(32, 32); self.a = nn.Sequential(a, b, a, b)",
        "a, b = nn.Linear(32, 32), nn.Linear(32, 32); self.a = nn.Sequential(a, a, b, b)",
    ),
    "frozen": (
        "self.a = nn.Linear(32, 32)",
        "self.a = nn.Linear(32, 32); self.a.weight.requires_grad = False",
    ),
    "a fixed tensor": (
        "self.p = torch.arange(32) / 10; self.a = lambda x: x + self.p",
        "self.p = torch.arange(32) / 20; self.a = lambda x: x + self.p",
    ),
    "a buffer": (
        "self.register_buffer('p', torch.tensor([1.0, 2.0])); self.a = lambda x: x * self.p.sum()",
        "self.register_buffer('p', torch.tensor([1.0, 3.0])); self.a = lambda x: x * self.p.sum()",
    ),
}


def layered(init: str) -> str:
    """A network that is this layer, then a sum of all its features."""
    lines = (
        "y = self.a(x); x = x + y.sum((1, 2, 3), True) + y.amax((2, 3)).sum(1)[:, None, None, None]"
    )
    return body(lines, init=init)


@pytest.mark.parametrize("name", LAYERS_SAME)
def test_equal_layers(sandbox: Sandbox, name: str) -> None:
    one, other = (traced(sandbox, layered(init)) for init in LAYERS_SAME[name])
    assert graph_hash(one) == graph_hash(other), (canonical(one), canonical(other))


@pytest.mark.parametrize("name", LAYERS_DIFFERENT)
def test_different_layers(sandbox: Sandbox, name: str) -> None:
    one, other = (traced(sandbox, layered(init)) for init in LAYERS_DIFFERENT[name])
    assert graph_hash(one) != graph_hash(other)
    assert 0.0 < graph_distance(one, other) < 1.0


def test_a_disguised_duplicate_is_found(sandbox: Sandbox, plain: dict[str, Any]) -> None:
    code = (HOSTILE / "disguised_duplicate.py").read_text()
    assert jaccard(shingles(code), shingles(network())) < 0.5, "its text is new"
    graph = traced(sandbox, code)
    assert graph_hash(graph) == graph_hash(plain)
    assert graph_distance(graph, plain) == 0.0


def test_the_hash_never_changes(plain: dict[str, Any]) -> None:
    # A changed value would silently make stored hashes incomparable.
    assert graph_hash(plain)[:16] == "19dd423b4df94777"


def test_the_order_of_nodes_does_not_count(sandbox: Sandbox) -> None:
    graph = traced(sandbox, body(*(f"x = x + torch.sin(x * {i}) * torch.cos(x)" for i in range(9))))
    rng, nodes = random.Random(1), graph["nodes"]
    expected = graph_hash(graph)
    for _ in range(20):
        placed: dict[int, int] = {}
        order = []
        while len(order) < len(nodes):
            ready = [
                i
                for i, node in enumerate(nodes)
                if i not in placed and all(n in placed for n in inputs(node))
            ]
            placed[ready[0] if rng.random() < 0.3 else rng.choice(ready)] = len(order)
            order.append(max(placed, key=lambda i: placed[i]))
        moved = [renumbered(nodes[i], placed) for i in order]
        assert graph_hash({"nodes": moved, "output": [placed[graph["output"][0]], 0]}) == expected


def inputs(value: Any) -> Iterator[int]:
    if isinstance(value, dict):
        yield value["input"][0]
    elif isinstance(value, list):
        for item in value:
            yield from inputs(item)


def renumbered(value: Any, places: dict[int, int]) -> Any:
    if isinstance(value, dict):
        return {"input": [places[value["input"][0]], value["input"][1]]}
    return [renumbered(v, places) for v in value] if isinstance(value, list) else value


def test_distance_grows_with_the_edit(sandbox: Sandbox, plain: dict[str, Any]) -> None:
    code = network()
    near = traced(sandbox, code.replace("torch.relu", "torch.tanh"))
    far = traced(sandbox, body("for _ in range(9): x = torch.tanh(nn.MaxPool2d(3, 1, 1)(x))"))
    assert graph_distance(plain, plain) == 0.0
    assert 0.0 < graph_distance(plain, near) < graph_distance(plain, far) < 1.0
    assert graph_shingles(plain).size == len(set(graph_shingles(plain).tolist()))


def test_motifs_name_pieces_of_design(plain: dict[str, Any], sandbox: Sandbox) -> None:
    assert operator_motifs(plain)["conv 3x3 > batch_norm > relu"] == 1
    wider = traced(sandbox, network().replace("8", "12"))
    assert operator_motifs(wider) == operator_motifs(plain), "widths are no motif"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("for _ in range(30000): x = torch.sin(x)", "operators"),
        ("for _ in range(41000): x.sin()", "more than 40,000 operators"),
        ("if not self.training: raise ValueError('not now')", "not now"),
        ("if not self.training: return x", "shape"),
    ],
)
def test_a_network_without_a_graph_says_why(sandbox: Sandbox, line: str, reason: str) -> None:
    verdict, graph = sandbox.trace(body(line), shape=SHAPE, classes=10)
    assert graph is None
    assert verdict.outcome is Outcome.VALID
    assert verdict.n_params == 1530
    assert verdict.error is not None
    assert reason in verdict.error


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("import nothing_like_this", Outcome.IMPORT_ERROR),
        (network(init="raise ValueError('no')"), Outcome.INSTANTIATE_ERROR),
        (network(forward="return x"), Outcome.FORWARD_ERROR),
        (network(forward="import os; os._exit(0)"), Outcome.FORWARD_ERROR),
        (network(forward="import os; os.open('/tmp/a', 65)"), Outcome.SANDBOX_VIOLATION),
    ],
)
def test_a_bad_network_has_an_outcome(sandbox: Sandbox, code: str, outcome: Outcome) -> None:
    verdict, graph = sandbox.trace(code, shape=SHAPE, classes=10)
    assert (verdict.outcome, graph) == (outcome, None), verdict
    assert verdict.error


NODE = ["input", [], [[["1N", 3], "float32"]]]
BAD = {
    "not an object": [],
    "no output": {"nodes": [NODE]},
    "more than that": {"nodes": [NODE], "output": [0, 0], "more": 1},
    "no nodes": {"nodes": [], "output": [0, 0]},
    "nodes are a text": {"nodes": "abc", "output": [0, 0]},
    "too many": {"nodes": [NODE] * (MAX_NODES + 1), "output": [0, 0]},
    "a node is a number": {"nodes": [1], "output": [0, 0]},
    "a node is short": {"nodes": [["input", []]], "output": [0, 0]},
    "an operator is a list": {"nodes": [[["x"], [], NODE[2]]], "output": [0, 0]},
    "an operator is huge": {"nodes": [["x" * 10_000, [], NODE[2]]], "output": [0, 0]},
    "an operator is not printable": {"nodes": [["\x1b[2J", [], NODE[2]]], "output": [0, 0]},
    "no outputs": {"nodes": [["input", [], []]], "output": [0, 0]},
    "a shape is a number": {"nodes": [["input", [], [[3, "float32"]]]], "output": [0, 0]},
    "a size is negative": {"nodes": [["input", [], [[[-3], "float32"]]]], "output": [0, 0]},
    "a size is a fraction": {"nodes": [["input", [], [[[0.5], "float32"]]]], "output": [0, 0]},
    "a size is true": {"nodes": [["input", [], [[[True], "float32"]]]], "output": [0, 0]},
    "a size is a word": {"nodes": [["input", [], [[["many"], "float32"]]]], "output": [0, 0]},
    "too many dimensions": {"nodes": [["input", [], [[[1] * 99, "float32"]]]], "output": [0, 0]},
    "a type is missing": {"nodes": [["input", [], [[[1], None]]]], "output": [0, 0]},
    "output of nothing": {"nodes": [NODE], "output": [1, 0]},
    "negative output": {"nodes": [NODE], "output": [-1, 0]},
    "no such output": {"nodes": [NODE], "output": [0, 1]},
    "output is true": {"nodes": [NODE], "output": [False, 0]},
    "output is a text": {"nodes": [NODE], "output": "00"},
}
ARGUMENTS = {
    "a cycle": {"input": [1, 0]},
    "a later node": {"input": [2, 0]},
    "a negative node": {"input": [-1, 0]},
    "no such output of a node": {"input": [0, 1]},
    "an input that is no list": {"input": 0},
    "an input with more": {"input": [0, 0], "x": 1},
    "another object": {"x": 1},
    "a long text": "x" * 1000,
    "a large number": 2**70,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "a deep list": [[[[[[[[1]]]]]]]],
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_graph_is_refused(name: str) -> None:
    with pytest.raises(GraphError):
        checked(BAD[name])


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_is_no_argument_is_refused(name: str) -> None:
    node = ["sin", [["self", ARGUMENTS[name]]], NODE[2]]
    with pytest.raises(GraphError, match="node 1"):
        checked({"nodes": [NODE, node], "output": [1, 0]})
    for arguments in ([["self"]], ["self"], "self", [["", 1]], [["a", 1], ["a", 2]]):
        with pytest.raises(GraphError):
            checked({"nodes": [["sin", arguments, NODE[2]]], "output": [0, 0]})


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b"1" * (9 << 20), b"NaN"])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(GraphError):
        parse(data)


def test_no_lie_that_passes_breaks_the_comparison(sandbox: Sandbox) -> None:
    """Every value of honest graphs is replaced by others; rules must not trust what they read."""
    lines = [line for pair in (*SAME.values(), *DIFFERENT.values()) for line in pair]
    rng = random.Random(5)
    graphs = [traced(sandbox, body(line)) for line in rng.sample(lines, 25)]
    values = [0, 1, -1, 3, 10**9, "1N", "7N", None, True, 0.5, [], [0], [1, 0], [5, -9], "x", [[1]]]
    names = sorted({node[0] for graph in graphs for node in graph["nodes"]})
    names += ["full", "permute", "reshape", "slice", "cat", "clamp", "view_scatter", "t_scatter"]
    passed = 0
    for _ in range(1500):
        graph = copy.deepcopy(rng.choice(graphs))
        for _ in range(rng.randint(1, 4)):
            operator = rng.choice(graph["nodes"])
            change = rng.randrange(4)
            if change == 0:
                operator[0] = rng.choice(names)
            elif change == 1 and operator[1]:
                rng.choice(operator[1])[1] = rng.choice(values)
            elif change == 2:
                operator[2][0][0] = rng.choice(
                    [[], [1], ["1N"], [2, 3], [0, 5, "3N"], [10**15] * 9]
                )
            elif operator[1]:
                del operator[1][rng.randrange(len(operator[1]))]
        try:
            checked(graph)
        except GraphError:
            continue
        passed += 1
        assert len(graph_hash(graph)) == 64
        operator_motifs(graph)
        assert graph_shingles(graph).size
    assert passed > 500


def test_inputs_in_odd_places_break_nothing() -> None:
    rng = random.Random(6)
    arguments = ["self", "other", "dim", "dims", "min", "min_val", "max_val", "tensors", "end"]
    arguments += ["kernel_size", "stride", "padding", "ceil_mode", "value", "mean", "base", "view"]
    shapes = [[], [1], ["1N"], [2, 3], ["1N", 3, 4, 4], ["1N", 3, 1, 1]]

    def value(places: int, depth: int) -> Any:
        if rng.random() < 0.4:
            return {"input": [rng.randrange(places), 0]}
        if depth and rng.random() < 0.3:
            return [value(places, depth - 1) for _ in range(rng.randint(0, 3))]
        return rng.choice([0, 1, -1, 2, None, True, 0.5, "1N", [0], [1, 1], [2, 3]])

    for _ in range(2000):
        nodes: list[Any] = [["input", [], [[["1N", 3, 4, 4], "float32"]]]]
        for number in range(1, rng.randint(3, 8)):
            names = rng.sample(arguments, rng.randint(0, 4))
            given = [[name, value(number, 3)] for name in names]
            if "self" not in names:
                given.append(["self", {"input": [number - 1, 0]}])
            nodes.append([rng.choice(sorted(_RULES)), given, [[rng.choice(shapes), "float32"]]])
        graph = checked({"nodes": nodes, "output": [len(nodes) - 1, 0]})
        assert sketch_graph(graph).hash == graph_hash(graph)


def test_a_pooling_may_lie_about_its_rank() -> None:
    def node(operator: str, source: int, shape: list[int]) -> list[Any]:
        return [operator, [["self", {"input": [source, 0]}], ["dim", [1, 2]]], [[shape, "float32"]]]

    nodes = [["input", [], [[[2, 3, 4], "float32"]]], node("mean", 0, [2])]
    nodes.append(node("_adaptive_avg_pool2d", 1, [1, 1, 1, 1]))
    assert graph_hash(checked({"nodes": nodes, "output": [2, 0]}))


def chain(operator: str, argument: str, length: int, times: int = 1) -> dict[str, Any]:
    nodes: list[Any] = [["input", [], [[["1N", 3], "float32"]]]]
    for i in range(length):
        value: Any = {"input": [i, 0]}
        given = [[argument, [value] * times if times > 1 else value], ["dim", 1]]
        nodes.append([operator, given, [[["1N", 3], "float32"]]])
    return checked({"nodes": nodes, "output": [length, 0]})


def turning(length: int) -> dict[str, Any]:
    """Permutations and reshapes in turn, and an elementwise operator now and then."""
    nodes: list[Any] = [["input", [], [[["1N", 3, 4], "float32"]]]]
    for i in range(length):
        given: list[Any] = [["self", {"input": [i, 0]}]]
        if i % 2:
            nodes.append(["permute", [*given, ["dims", [0, 2, 1]]], [[["1N", 3, 4], "float32"]]])
        else:
            shape = ["1N", 4, 3] if i % 10 else ["1N", 3, 4]
            nodes.append(["view" if i % 10 else "sin", given, [[shape, "float32"]]])
    return checked({"nodes": nodes, "output": [length, 0]})


def test_the_largest_graphs_are_compared_in_seconds() -> None:
    started = time.process_time()
    graphs = [chain("sin", "self", MAX_NODES - 1), chain("cat", "tensors", 4000, times=2)]
    for graph in (*graphs, turning(5000)):
        graph_hash(graph)
        graph_shingles(graph)
        operator_motifs(graph)
    assert time.process_time() - started < 20


def test_a_wide_concatenation_of_a_wide_one_is_not_written_out() -> None:
    graph = chain("cat", "tensors", 2, times=2000)
    tracemalloc.start()
    graph_hash(graph)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8 << 20, "four million places have 32 MB"


LIES = {
    "no json": 'b"not a graph"',
    "no graph": 'b"{}"',
    "a cycle": 'b\'{"nodes":[["a",[["x",{"input":[0,0]}]],[[[1],"f"]]]],"output":[0,0]}\'',
    "longer than said": 'b"x" * 50',
    "endless": 'b"x" * (64 << 20)',
}


@pytest.mark.parametrize("name", LIES)
def test_a_process_that_lies_has_no_graph(sandbox: Sandbox, name: str) -> None:
    size = {"longer than said": "10", "endless": "1 << 60"}.get(name, "len(data)")
    top = (
        "import sys\n"
        "harness = sys.modules['archloop.sandbox.candidate.harness']\n"
        f"data = {LIES[name]}\n"
        "def lie(sock, job, phase):\n"
        "    harness.wire.send(sock, {'stage': 'built', 'n_params': 1})\n"
        f"    harness.wire.send(sock, {{'stage': 'graph', 'bytes': {size}}})\n"
        "    sock.sendall(data)\n"
        "frame = sys._getframe()\n"
        "while frame and frame.f_code.co_name != '_trace':\n    frame = frame.f_back\n"
        "lie(frame.f_locals['sock'], None, None)\n"
        "import os; os._exit(0)\n"
    )
    verdict, graph = sandbox.trace(network(top=top), shape=SHAPE, classes=10)
    assert graph is None
    assert verdict.outcome is not Outcome.VALID
    assert verdict.error


def test_real_networks_and_their_edits_are_told_apart(sandbox: Sandbox) -> None:
    """Precision and recall of "the same network" on every fourth of the labelled pairs."""
    rows = [json.loads(line) for line in gzip.decompress(PAIRS.read_bytes()).splitlines()]
    assert len(rows) >= 200
    for same, kinds in ((True, 8), (False, 8)):
        assert len({row["kind"] for row in rows if row["same"] is same}) >= kinds
    hashes: dict[str, str] = {}

    def hash_of(code: str) -> str:
        if code not in hashes:
            hashes[code] = graph_hash(traced(sandbox, code))
        return hashes[code]

    said = [(hash_of(row["a"]) == hash_of(row["b"]), row["same"]) for row in rows[::4]]
    right = sum(a and b for a, b in said)
    assert right / sum(a for a, _ in said) >= 0.99
    assert right / sum(b for _, b in said) >= 0.99


def test_outputs_times_inputs_of_one_operator_are_bounded() -> None:
    """The canonical form writes the arguments of an operator out for each of its outputs."""

    def wide(n: int) -> dict[str, Any]:
        image, outputs = ["input", [], [[["1N", 3], "float32"]]], [[["1N"], "float32"]] * n
        cut = ["unbind", [["self", {"input": [0, 0]}], ["dim", 1]], outputs]
        parts = [["self", [{"input": [1, k]} for k in range(n)]]]
        every = ["_foreach_neg", parts, outputs]
        joined = [["tensors", [{"input": [2, k]} for k in range(n)]], ["dim", 0]]
        end = ["stack", joined, [[[n, "1N"], "float32"]]]
        return checked({"nodes": [image, cut, every, end], "output": [3, 0]})

    assert len(graph_hash(wide(100))) == 64
    with pytest.raises(GraphError, match="operators with several outputs have 1,00"):
        sketch_graph(wide(1000))


def test_a_sketch_from_elsewhere_has_the_form_of_one(plain: dict[str, Any]) -> None:
    honest = sketch_graph(plain)
    assert honest.profile is not None and honest.motifs is not None
    motifs = list(honest.motifs)
    assert checked_sketch(honest.hash, honest.shingles, honest.profile, motifs) == honest
    for wrong in (None, motifs * 2, ["a\n"], [1], ["a" * 2000], [str(i) for i in range(600)]):
        assert checked_sketch(honest.hash, honest.shingles, None, wrong).motifs is None
    for odd in (None, [], {}, honest.profile | {"depth": "2"}, honest.profile | {"depth": -1}):
        assert checked_sketch(honest.hash, honest.shingles, odd).profile is None
    for hash, packed in (
        (None, honest.shingles),
        (honest.hash.upper().replace("0", "G"), honest.shingles),
        (honest.hash[1:], honest.shingles),
        (honest.hash, b""),
        (honest.hash, honest.shingles[1:]),
        (honest.hash, honest.shingles[:8] * 2),
        (honest.hash, bytes(8 * MAX_SHINGLES + 8)),
        (honest.hash, honest.shingles[-8:] + honest.shingles[:8]),
    ):
        with pytest.raises(GraphError):
            checked_sketch(hash, packed)


def test_a_process_finds_the_same_sketch_and_cost_as_its_graph(
    sandbox: Sandbox, plain: dict[str, Any]
) -> None:
    verdict, found = sandbox.sketch(network(), shape=SHAPE, classes=10)
    assert verdict.outcome is Outcome.VALID
    assert found is not None
    assert found.graph.outputs is not None
    expected = sketch_graph(plain)
    assert expected.profile is not None
    profile = expected.profile | {"macs": float(macs(plain) or 0)}
    assert replace(found.graph, outputs=None) == replace(expected, profile=profile)
    assert found.cost == cost(plain)
