"""The structure of a network: what it is built of beside a plain stack of layers.

A *structure profile* is read from the canonical graph and stored as measures
(:func:`profile`); the *structure class* says which structures are there at all
(:func:`structure_class`), the *niche* the class and the cost (:func:`niche`). Both are read from
the measures, so that they can be told of every stored row.

Two values are the same *path* where one is made from the other by element-wise operators,
reductions and changes of layout alone. So ``x * sigmoid(x)`` is an activation and no gate, a
normalisation that is written out is none either, and ``x + relu(x)`` is no skip connection. A
value that does not depend on the image (a scale, a bias, an embedding of positions) makes no path.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from archloop.novelty.arguments import as_ints
from archloop.novelty.canonical import Node
from archloop.types import PROFILE

PLAIN = "plain"
"""The class of a network without any structure: a chain of layers."""
UNTRACED = "untraced"
"""The niche of a network whose structure was not measured."""

STRUCTURES: dict[str, str] = {
    "skip": "skips",
    "join": "joins",
    "gate": "gates",
    "grouped": "grouped_convs",
    "depthwise": "depthwise_convs",
    "attention": "attentions",
    "dilated": "dilated_convs",
    "asymmetric": "asymmetric_convs",
}
"""The structures that make a class, in the order they are named in, each with the measure that
counts it."""
_FIRST_CELL = 20
"""Base-2 logarithm of the upper edge of the first cell of MACs, which begins at nothing."""
_LAST_CELL = 30
"""The same of the last but one; the last cell has no upper edge."""


def structure_class(measures: Mapping[str, float]) -> str | None:
    """Which structures a network has, such as ``skip+gate``; ``plain`` where it has none.

    Args:
        measures: Of the network, by name.

    Returns:
        The class; ``None`` where its structure was not measured.
    """
    if not all(name in measures for name in STRUCTURES.values()):
        return None
    return "+".join(s for s, name in STRUCTURES.items() if measures[name] > 0) or PLAIN


def macs_cell(macs: float) -> str:
    """The cell of a number of multiply-accumulates: powers of two from 2^20 to 2^30.

    >>> [macs_cell(m) for m in (0, 1_048_575, 1_048_576, 15_000_000, 2e9)]
    ['<1M', '<1M', '1-2M', '8-17M', '>=1074M']
    """
    level = max(_FIRST_CELL, math.floor(math.log2(macs)) + 1) if macs >= 1 else _FIRST_CELL
    if level == _FIRST_CELL:
        return f"<{_millions(level)}M"
    if level > _LAST_CELL:
        return f">={_millions(_LAST_CELL)}M"
    return f"{_millions(level - 1)}-{_millions(level)}M"


def _millions(level: int) -> int:
    return round((1 << level) / 1e6)


def niche(measures: Mapping[str, float]) -> str:
    """Class and cost of a network, such as ``skip+gate @ 8-17M``; ``untraced`` without a class."""
    found, macs = structure_class(measures), measures.get("macs")
    if found is None:
        return UNTRACED
    return f"{found} @ {'uncounted' if macs is None else macs_cell(macs)}"


def checked_profile(value: Any) -> dict[str, float] | None:
    """A profile from an untrusted process; ``None``: it has not the form of one."""
    if not isinstance(value, dict) or value.keys() != set(PROFILE):
        return None
    if not all(type(n) in (int, float) and 0 <= n <= _MOST for n in value.values()):
        return None
    return {name: float(value[name]) for name in PROFILE}


_MOST = 2.0**53
"""Largest measure that is believed."""
_LAYOUT = frozenset(
    {"reshape", "permute", "expand", "cast", "slice", "constant_pad_nd", "flip", "roll"}
)
_REDUCTIONS = frozenset(
    {"mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp", "linalg_vector_norm"}
    | {"max", "min", "cumsum", "var_mean"}
)
_SAME_PATH = frozenset(
    {
        *("add", "sub", "rsub", "mul", "div", "pow", "neg", "abs", "sqrt", "rsqrt", "exp", "log"),
        *("sin", "cos", "clamp", "relu", "hardtanh", "clamp_min", "clamp_max", "threshold", "erf"),
        *("leaky_relu", "elu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardswish", "log1p"),
        *("hardsigmoid", "softplus", "log_sigmoid_forward", "celu", "selu", "reciprocal", "sign"),
        *(
            "_softmax",
            "_safe_softmax",
            "_log_softmax",
            "native_dropout",
            "dropout",
            "_prelu_kernel",
            "expm1",
        ),
        *("maximum", "minimum", "where", "square", "softshrink", "hardshrink", "rrelu_with_noise"),
        *("bernoulli", "floor", "ceil", "round", "addcmul", "addcdiv", "logical_not"),
        *("eq", "ne", "gt", "lt", "ge", "le"),
    }
    | {"reshape", "permute", "expand", "cast"}
    | _REDUCTIONS
)
"""Operators whose result is the same path as their input, where all their inputs are one."""
_NORMS = ("native_batch_norm", "native_layer_norm", "native_group_norm", "_native_batch_norm")
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "_thnn_fused", "mkldnn_rnn", "_cudnn_rnn")
_PRODUCTS = frozenset({"mm", "bmm", "mv", "dot", "baddbmm", "addbmm", "matmul"})
_FUSED = ("_scaled_dot_product", "_flash", "_efficient_attention")
_MOST_BETWEEN = 8
"""Most operators between stacked branches and their sum."""
_SUMS = frozenset({"add", "sub", "rsub"})


def profile(nodes: Sequence[Node]) -> dict[str, float]:
    """The structure profile of a network.

    ``depth``: weighted layers on the longest path; ``skips``: sums (and differences) of two paths,
    and means over stacked branches; ``joins``: concatenations of two values; ``gates``: products of
    two paths; ``attentions``: products of two matrices that both depend on the image, an
    attention's two counted once; ``grouped_convs`` (without depthwise ones), ``depthwise_convs``,
    ``dilated_convs``, ``asymmetric_convs`` (kernels that are not square); ``recurrents``: calls of
    recurrent layers; ``global_pools``: reductions over height and width; ``norms``: normalisation
    layers; ``linear_share``: share of the parameters in matrices of linear layers, 0..1.

    Args:
        nodes: The canonical graph (:func:`archloop.novelty.graph.canonical`), output last.

    Returns:
        Every name of ``PROFILE`` with its value, finite and not negative.
    """
    reader = _Reader(nodes)
    for place in range(len(nodes)):
        reader.read(place)
    return reader.counted()


@dataclass
class _Facts:
    """What is known of a node."""

    data: bool
    """Whether it depends on the image."""
    path: int
    """The node where its path began."""
    depth: int
    """Weighted layers before and at it."""
    product: bool
    """Whether it is a product of two matrices of data, or that changed without weights."""


def _size(n: int | str) -> int:
    """A size for one image: ``"4N"`` is 4."""
    return n if isinstance(n, int) else int(n.rstrip("N"))


class _Reader:
    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._facts: list[_Facts] = []
        self._counts: dict[str, float] = dict.fromkeys(PROFILE, 0.0)
        self._joins: set[int] = set()
        self._linear: set[int] = set()
        """Parameters that linear layers multiply by."""

    def read(self, place: int) -> None:
        """Count one node, after those before it."""
        node = self._nodes[place]
        data = [i for i in node.inputs if self._facts[i].data]
        weights = [i for i in node.inputs if not self._facts[i].data]
        depth = max((self._facts[i].depth for i in data), default=0)
        facts = _Facts(bool(data) or node.operator == "input", place, depth, product=False)
        self._facts.append(facts)
        if not data:
            return
        paths = {self._facts[i].path for i in data}
        operator = node.operator.rstrip("*")
        if operator in _SAME_PATH | _LAYOUT:
            facts.product = any(self._facts[i].product for i in data)
        if operator in _SAME_PATH:
            if len(paths) == 1:
                facts.path = next(iter(paths))
            self._combined(node, operator, data, paths)
        elif node.operator == "cat" and len(set(data)) > 1:
            self._joins.add(place)
        else:
            self._layer(node, facts, data, weights)

    def _layer(self, node: Node, facts: _Facts, data: list[int], weights: list[int]) -> None:
        operator = node.operator.rstrip("*")
        if operator == "convolution":
            facts.depth += bool(weights)
            if len(node.inputs) > 1:
                self._convolution(node, self._nodes[node.inputs[1]].shape)
        elif operator in _PRODUCTS or operator.startswith(_FUSED):
            facts.depth += bool(weights)
            self._product(node, facts, data, weights)
        elif operator.startswith(_RECURRENT):
            facts.depth += 1
            self._counts["recurrents"] += 1
        elif operator in _NORMS:
            self._counts["norms"] += 1

    def _combined(self, node: Node, operator: str, data: list[int], paths: set[int]) -> None:
        if operator in _SUMS and len(paths) > 1:
            self._counts["skips"] += 1
        elif operator == "mul" and len(paths) > 1:
            self._counts["gates"] += 1
        elif operator in _REDUCTIONS:
            source = self._nodes[data[0]]
            dims = as_ints(json.loads(node.attributes).get("dims")) or []
            if len(source.shape) == 4 and dims == [2, 3]:
                self._counts["global_pools"] += 1
            self._stacked(data[0], dims)

    def _stacked(self, place: int, dims: list[int]) -> None:
        """A reduction over the dimension that branches were stacked along is their sum.

        They may be weighted, or changed element by element, in between.
        """
        for stacked in self._elementwise_before(place):
            if stacked not in self._joins:
                continue
            node = self._nodes[stacked]
            parts = [self._nodes[i].shape for i in node.inputs]
            dim = json.loads(node.attributes)["dim"]
            if dim in dims and all(shape[dim : dim + 1] in ((1,), ("1N",)) for shape in parts):
                self._joins.discard(stacked)
                self._counts["skips"] += len(parts) - 1
                return

    def _elementwise_before(self, place: int) -> Iterator[int]:
        """A value and those that it is made of element by element, nearest first."""
        for _ in range(_MOST_BETWEEN):
            yield place
            node = self._nodes[place]
            wide = [i for i in node.inputs if len(self._nodes[i].shape) >= len(node.shape)]
            wide = [i for i in wide if self._facts[i].data]
            if node.operator.rstrip("*") not in _SAME_PATH or not wide:
                return
            place = max(wide, key=lambda i: prod(map(_size, self._nodes[i].shape)))

    def _convolution(self, node: Node, weight: tuple[Any, ...]) -> None:
        attributes = json.loads(node.attributes)
        kernel, groups = weight[2:], attributes.get("groups", 1)
        if type(groups) is int and groups > 1:
            depthwise = weight[1:2] == (1,)
            self._counts["depthwise_convs" if depthwise else "grouped_convs"] += 1
        dilation = as_ints(attributes.get("dilation")) or []
        if any(d > 1 and k != 1 for d, k in zip(dilation, kernel, strict=False)):
            self._counts["dilated_convs"] += 1
        if len(set(kernel)) > 1:
            self._counts["asymmetric_convs"] += 1

    def _product(self, node: Node, facts: _Facts, data: list[int], weights: list[int]) -> None:
        if len(data) > 1:
            facts.product = True
            # The second product of an attention takes what the first one gave.
            self._counts["attentions"] += not any(self._facts[i].product for i in data)
        elif weights and not node.operator.startswith(_FUSED):
            self._linear.update(self._parameters(weights))

    def _parameters(self, places: list[int]) -> set[int]:
        """The parameters that values are made of."""
        found: set[int] = set()
        todo = [*places]
        while todo:
            place = todo.pop()
            if self._nodes[place].operator in ("parameter", "frozen"):
                found.add(place)
            todo += self._nodes[place].inputs
        return found

    def counted(self) -> dict[str, float]:
        """The whole profile."""
        sizes = {
            place: prod(n for n in node.shape if type(n) is int)
            for place, node in enumerate(self._nodes)
            if node.operator in ("parameter", "frozen")
        }
        total = sum(sizes.values())
        self._counts["joins"] = float(len(self._joins))
        self._counts["depth"] = float(self._facts[-1].depth if self._facts else 0)
        if total:
            self._counts["linear_share"] = sum(sizes[p] for p in self._linear) / total
        return self._counts
