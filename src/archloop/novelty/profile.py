"""The structure profile of a network, read from its canonical graph.

Two values are the same *path* where one is made from the other by element-wise operators,
reductions, normalisations and changes of layout alone. So ``x * sigmoid(x)`` is an activation and
no gate, a normalisation that is written out is none either, and ``x + relu(x)`` is no skip
connection. A value that does not depend on the image (a scale, a bias, an embedding of positions,
the mask of a dropout) makes no path.

Recurrent layers are unrolled in the graph. A linear layer that is applied again to what it gave
before, with a row for each image, is taken for the inner one of a recurrent layer, and the sums,
products and concatenations between its steps are not counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from archloop.novelty.arguments import as_ints
from archloop.novelty.canonical import Node
from archloop.types import PROFILE

_LAYOUT = frozenset(
    {"reshape", "permute", "expand", "cast", "slice", "constant_pad_nd", "flip", "roll"}
)
_ADDING = frozenset({"mean", "sum"})
_REDUCTIONS = _ADDING | {
    *("amax", "amin", "max", "min", "var", "std", "var_mean", "prod", "cumsum", "logsumexp"),
    "linalg_vector_norm",
}
_NORMS = frozenset({"native_batch_norm", "native_layer_norm", "native_group_norm"})
_SAME_PATH = (
    frozenset(
        {
            *("add", "sub", "rsub", "mul", "div", "pow", "neg", "abs", "sqrt", "rsqrt", "square"),
            *("exp", "expm1", "log", "log1p", "sin", "cos", "erf", "reciprocal", "sign"),
            *("relu", "hardtanh", "clamp", "clamp_min", "clamp_max", "threshold", "leaky_relu"),
            *("elu", "celu", "selu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardswish"),
            *("hardsigmoid", "softplus", "log_sigmoid_forward", "softshrink", "hardshrink"),
            *("_prelu_kernel", "rrelu_with_noise", "_softmax", "_safe_softmax", "_log_softmax"),
            *("native_dropout", "dropout", "floor", "ceil", "round", "maximum", "minimum"),
            *("where", "bernoulli", "addcmul", "addcdiv", "lerp", "logical_not"),
            *("eq", "ne", "gt", "lt", "ge", "le", "reshape", "permute", "expand", "cast"),
        }
    )
    | _REDUCTIONS
    | _NORMS
)
"""Operators whose result is the same path as their inputs, where these are one path."""
_SHAPE_ONLY = frozenset(
    {"empty_like", "rand_like", "randn_like", "randint_like", "new_empty", "new_empty_strided"}
)
"""Operators that take nothing but the shape of a tensor."""
_SUMS = frozenset({"add", "sub", "rsub", "lerp", "addcmul", "addcdiv"})
_PRODUCTS = {"mul": (0, 1), "addcmul": (1, 2), "lerp": (1, 2)}
"""Products, and which of the inputs are multiplied."""
_MATRIX_PRODUCTS = frozenset({"mm", "bmm", "mv", "dot", "baddbmm", "addbmm", "matmul"})
_FUSED = ("_scaled_dot_product", "_flash", "_efficient_attention")
_MOST_BETWEEN = 8
"""Most operators between stacked branches and their sum."""


def profile(nodes: Sequence[Node]) -> dict[str, float]:
    """The structure profile of a network.

    ``depth``: weighted layers on the longest path, the steps of a recurrence once; ``skips``: sums
    (and differences) of two paths, and sums and means over stacked branches; ``joins``:
    concatenations of two values; ``gates``: products of two paths, and gated linear units;
    ``attentions``: products of two matrices that both depend on the image, an attention's two
    counted once, and convolutions with weights that do; ``grouped_convs`` (without depthwise
    ones), ``depthwise_convs``, ``dilated_convs``, ``asymmetric_convs`` (kernels that are not
    square); ``recurrents``: linear layers that are applied again to what they gave;
    ``global_pools``: reductions over height and width; ``norms``: batch, layer, group and instance
    normalisation layers; ``linear_share``: share of the parameters in matrices of linear layers,
    0..1.

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
    open: bool = False
    """Whether it is the first product of an attention, or that changed without weights."""
    cell: bool = False
    """Whether it is what a step of a recurrence gave, or that changed without weights."""
    steps: bool = False
    """Whether it is what all steps of a recurrence gave, as one value."""


class _Reader:
    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._facts: list[_Facts] = []
        self._counts: dict[str, float] = dict.fromkeys(PROFILE, 0.0)
        self._joins: set[int] = set()
        self._linear: set[int] = set()
        """Parameters that linear layers multiply by."""
        self._steps, self._between = _recurrences(nodes)

    def read(self, place: int) -> None:
        """Count one node, after those before it."""
        node = self._nodes[place]
        operator = node.operator.rstrip("*")
        data = [i for i in node.inputs if self._facts[i].data and operator not in _SHAPE_ONLY]
        weights = [i for i in node.inputs if not self._facts[i].data]
        depth = max((self._facts[i].depth for i in data), default=0)
        facts = _Facts(bool(data) or node.operator == "input", place, depth)
        self._facts.append(facts)
        if not data:
            return
        paths = {self._facts[i].path for i in data}
        if operator in _SAME_PATH | _LAYOUT:
            facts.open = any(self._facts[i].open for i in data)
            facts.cell = any(self._facts[i].cell for i in data)
            facts.steps = operator in _LAYOUT and self._facts[data[0]].steps
        if operator in _SAME_PATH and len(paths) == 1:
            facts.path = next(iter(paths))
        recurrent = place in self._between or any(self._facts[i].cell for i in data)
        if operator in _REDUCTIONS:
            self._reduction(node, data[0])
        elif operator in _NORMS:
            self._counts["norms"] += 1
        elif operator in _SAME_PATH or operator == "glu":
            if not recurrent:
                self._combined(node, operator, paths)
        elif node.operator == "cat" and len(set(data)) > 1:
            self._concatenation(place, facts, data, recurrent=recurrent)
        else:
            self._layer(place, facts, data, weights)

    def _concatenation(
        self, place: int, facts: _Facts, data: list[int], *, recurrent: bool
    ) -> None:
        source = self._put_together(self._nodes[place])
        if source is not None:
            facts.path = self._facts[source].path
            return
        # Two directions of a recurrence are joined by the layer itself.
        facts.steps = recurrent or all(self._facts[i].steps for i in data)
        if not facts.steps:
            self._joins.add(place)

    def _put_together(self, node: Node) -> int | None:
        """The value whose slices a concatenation puts together again, all and in order."""
        dim, end, source = json.loads(node.attributes)["dim"], 0, None
        for part in (self._nodes[i] for i in node.inputs):
            cut = json.loads(part.attributes) if part.operator == "slice" else {}
            if (cut.get("dim"), cut.get("start")) != (dim, end):
                return None
            if source not in (None, part.inputs[0]):
                return None
            source, end = part.inputs[0], cut["end"]
        whole = source is not None and end == self._nodes[source].shape[dim]
        return source if whole else None

    def _layer(self, place: int, facts: _Facts, data: list[int], weights: list[int]) -> None:
        node = self._nodes[place]
        operator = node.operator.rstrip("*")
        if operator == "convolution":
            facts.depth += bool(weights)
            if len(node.inputs) > 1:
                self._convolution(node, self._nodes[node.inputs[1]].shape)
                self._counts["attentions"] += self._facts[node.inputs[1]].data
        elif operator in _MATRIX_PRODUCTS or operator.startswith(_FUSED):
            # A recurrence is one layer, however many steps it has.
            facts.cell = place in self._steps
            facts.depth += bool(weights) and self._steps.get(place, 0) == 0
            self._product(operator, facts, data, weights)
        elif operator == "_trilinear":
            facts.depth += bool(weights)
            self._counts["attentions"] += len(set(data)) > 1
            self._linear.update(self._parameters(weights))

    def _combined(self, node: Node, operator: str, paths: set[int]) -> None:
        if operator in _SUMS and len(paths) > 1:
            self._counts["skips"] += 1
        multiplied = [node.inputs[i] for i in _PRODUCTS.get(operator, ()) if i < len(node.inputs)]
        factors = [self._facts[i] for i in multiplied]
        gated = all(f.data for f in factors) and len({f.path for f in factors}) > 1
        self._counts["gates"] += gated or operator == "glu"

    def _reduction(self, node: Node, place: int) -> None:
        dims = as_ints(json.loads(node.attributes).get("dims")) or []
        self._counts["global_pools"] += self._is_global(place, dims)
        if node.operator in _ADDING:
            self._stacked(place, dims)

    def _is_global(self, place: int, dims: list[int]) -> bool:
        """Whether dimensions are height and width, also as one, or those and the branches."""
        node = self._nodes[place]
        rank = len(node.shape)
        if not all(0 <= d < rank for d in dims) or all(node.shape[d] == 1 for d in dims):
            return False
        if rank >= 4:
            return dims[-2:] == [rank - 2, rank - 1] and len(dims) <= rank - 2
        if rank != 3 or node.operator != "reshape" or dims != [2]:
            return False
        source = self._nodes[node.inputs[0]].shape
        return len(source) == 4 and source[:2] == node.shape[:2]

    def _stacked(self, place: int, dims: list[int]) -> None:
        """A sum over the dimension that branches were stacked along is that of the branches.

        They may be weighted, or changed element by element, in between.
        """
        rank = len(self._nodes[place].shape)
        for between in self._elementwise_before(place):
            node = self._nodes[between]
            stacked = node.inputs[0] if node.operator == "reshape" else between
            if stacked not in self._joins or len(node.shape) != rank:
                continue
            dim = json.loads(self._nodes[stacked].attributes)["dim"]
            parts = [self._nodes[i].shape for i in self._nodes[stacked].inputs]
            apart = (*parts[0][:dim], len(parts), *parts[0][dim:])
            if stacked == between:
                is_stack = all(part[dim : dim + 1] == (1,) for part in parts)
            else:
                is_stack = node.shape == apart and len(set(parts)) == 1
            if dim in dims and is_stack:
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
            operator = node.operator.rstrip("*")
            if operator in _LAYOUT - {"cast"} or operator not in _SAME_PATH or not wide:
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

    def _product(self, operator: str, facts: _Facts, data: list[int], weights: list[int]) -> None:
        if len(data) > 1:
            # The second product of an attention takes what the first one gave.
            second = any(self._facts[i].open for i in data)
            self._counts["attentions"] += not second
            facts.open = not second and not operator.startswith(_FUSED)
        elif weights and not operator.startswith(_FUSED):
            self._linear.update(self._parameters(weights))

    def _parameters(self, places: list[int]) -> set[int]:
        """The parameters that values are made of."""
        seen, todo = set(places), [*places]
        while todo:
            new = {i for i in self._nodes[todo.pop()].inputs if i not in seen}
            seen |= new
            todo += new
        return {i for i in seen if self._nodes[i].operator in ("parameter", "frozen")}

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
        self._counts["recurrents"] = float(sum(step == 0 for step in self._steps.values()))
        if total:
            self._counts["linear_share"] = sum(sizes[p] for p in self._linear) / total
        return self._counts


def _recurrences(nodes: Sequence[Node]) -> tuple[dict[int, int], set[int]]:
    """The steps of linear layers that are applied to what they gave, and what lies between these.

    Returns:
        The number of each step, from 0, by its node; and the nodes that follow from one step and
        lead to the next.
    """
    uses = Counter(node.inputs[1] for node in nodes if _is_step(node))
    bits = {weight: 1 << n for n, weight in enumerate(w for w, k in uses.items() if k > 1)}
    if not bits:
        return {}, set()
    own = [bits.get(node.inputs[1], 0) if _is_step(node) else 0 for node in nodes]
    before = [0] * len(nodes)
    """Of the steps that a node follows from, itself left out."""
    for place, node in enumerate(nodes):
        for i in node.inputs:
            before[place] |= before[i] | own[i]
    again = 0
    for place, bit in enumerate(own):
        again |= bit & before[place]
    own = [bit & again for bit in own]
    after = [0] * len(nodes)
    for place in reversed(range(len(nodes))):
        for i in nodes[place].inputs:
            after[i] |= after[place] | own[place]
    between = {p for p in range(len(nodes)) if before[p] & after[p] & again}
    steps = {p: int(before[p] & bit > 0) for p, bit in enumerate(own) if bit}
    return steps, between


def _is_step(node: Node) -> bool:
    """Whether it is a linear layer with a row for each image."""
    return node.operator == "mm" and node.shape[:1] == ("1N",)


def _size(n: int | str) -> int:
    """A size for one image: ``"4N"`` is 4."""
    return n if isinstance(n, int) else int(n.rstrip("N"))
