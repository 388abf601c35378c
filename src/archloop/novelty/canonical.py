"""The canonical form of a computation: nodes have no names, and equal nodes are merged.

Equal computations of equal inputs are one node, except random ones, and two parameters are never
equal. Consecutive reshapes, permutations, slices and reductions are merged. Shapes, types and all
other attributes are kept. :mod:`archloop.novelty.rules` unifies different ways of writing a
computation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[Any, ...]
"""Sizes of the dimensions; ``"2N"`` is twice the batch size."""

UNORDERED = frozenset(
    {
        "add",
        "mul",
        "maximum",
        "minimum",
        "logical_and",
        "logical_or",
        "logical_xor",
        "bitwise_and",
        "bitwise_or",
        "eq",
        "ne",
    }
)
"""Commutative operators."""

LEAVES = frozenset({"input", "parameter", "frozen", "constant"})

_RANDOM = frozenset(
    {
        "bernoulli",
        "cauchy",
        "empty",
        "empty_like",
        "empty_strided",
        "exponential",
        "geometric",
        "log_normal",
        "multinomial",
        "native_dropout",
        "new_empty",
        "normal",
        "normal_functional",
        "rand",
        "rand_like",
        "randint",
        "randint_like",
        "randn",
        "randn_like",
        "random",
        "randperm",
        "rrelu_with_noise",
        "uniform",
    }
)
_REDUCED_IN_STEPS = frozenset({"mean", "sum", "amax", "amin"})


@dataclass(frozen=True)
class Node:
    """One value of the canonical graph."""

    operator: str
    attributes: str
    """Attributes as JSON with sorted keys."""
    inputs: tuple[int, ...]
    """Indices of earlier nodes."""
    shape: Shape
    dtype: str


@dataclass
class Call:
    """One output of one traced operator, its inputs already canonical."""

    operator: str
    arguments: dict[str, Any]
    """Inputs are :class:`Input`."""
    index: int
    shape: Shape
    dtype: str

    def input(self, name: str = "self") -> int | None:
        """Index of the node of a tensor argument."""
        value = self.arguments.get(name)
        return value.place if isinstance(value, Input) else None

    def plain(self, *names: str) -> dict[str, Any]:
        """The other arguments."""
        return {k: v for k, v in self.arguments.items() if k not in names}


@dataclass(frozen=True)
class Input:
    """A tensor among arguments."""

    place: int


@dataclass
class Canonical:
    """Builds the canonical graph, node by node."""

    nodes: list[Node] = field(default_factory=list)
    _places: dict[Node, int] = field(default_factory=dict)

    def add(
        self,
        operator: str,
        attributes: dict[str, Any],
        inputs: tuple[int, ...],
        shape: Shape,
        dtype: str,
        *,
        unique: bool = False,
    ) -> int:
        """The index of a node; an existing equal node is reused unless ``unique`` is set."""
        if operator in UNORDERED:
            inputs = tuple(sorted(inputs))
        text = json.dumps(attributes, sort_keys=True)
        node = Node(operator, text, inputs, shape, dtype)
        if not unique and node in self._places:
            return self._places[node]
        place = len(self.nodes)
        self.nodes.append(node)
        if not unique:
            self._places[node] = place
        return place

    def general(self, call: Call, operator: str) -> int:
        """Add a node with unchanged arguments."""
        inputs: list[int] = []

        def place(value: Any) -> Any:
            if isinstance(value, Input):
                inputs.append(value.place)
                return "%"
            return [place(item) for item in value] if isinstance(value, list) else value

        attributes = {name: place(value) for name, value in call.arguments.items()}
        dim = attributes.get("dim")
        if type(dim) is int and dim < 0 and inputs:
            attributes["dim"] = dim + len(self.nodes[inputs[0]].shape)
        if call.index:
            attributes["output"] = call.index
        unique = call.operator in _RANDOM or (call.operator in LEAVES and not attributes)
        return self.add(operator, attributes, tuple(inputs), call.shape, call.dtype, unique=unique)

    def reshape(self, place: int, shape: Shape) -> int:
        """Reshape: the same elements in the same order."""
        while self.nodes[place].operator == "reshape":
            place = self.nodes[place].inputs[0]
        node = self.nodes[place]
        if node.shape == shape:
            return place
        return self.add("reshape", {}, (place,), shape, node.dtype)

    def permute(self, place: int, dims: list[int]) -> int:
        """Permute: dimension ``i`` of the result is ``dims[i]`` of the input."""
        node = self.nodes[place]
        if node.operator == "permute":
            before = json.loads(node.attributes)["dims"]
            dims = [before[d] for d in dims]
            place = node.inputs[0]
            node = self.nodes[place]
        shape = tuple(node.shape[d] for d in dims)
        moved = [d for d in dims if node.shape[d] != 1]
        if moved == sorted(moved):
            return self.reshape(place, shape)
        return self.add("permute", {"dims": dims}, (place,), shape, node.dtype)

    def expand(self, place: int, shape: Shape) -> int:
        """Broadcast to a shape."""
        node = self.nodes[place]
        if node.shape == shape:
            return place
        if node.operator == "full":
            return self.add("full", json.loads(node.attributes), (), shape, node.dtype)
        return self.add("expand", {}, (place,), shape, node.dtype)

    def cast(self, place: int, dtype: str) -> int:
        """Convert to another type."""
        node = self.nodes[place]
        return place if node.dtype == dtype else self.add("cast", {}, (place,), node.shape, dtype)

    def slice(self, place: int, dim: int, start: int, end: int) -> int:
        """Slice: elements ``start`` to ``end`` of a dimension."""
        node = self.nodes[place]
        if (start, end) == (0, node.shape[dim]):
            return place
        if node.operator == "slice":
            inner = json.loads(node.attributes)
            if inner["dim"] == dim:
                start, end = start + inner["start"], end + inner["start"]
                place = node.inputs[0]
        shape = (*node.shape[:dim], end - start, *node.shape[dim + 1 :])
        attributes = {"dim": dim, "start": start, "end": end}
        return self.add("slice", attributes, (place,), shape, node.dtype)

    def reduce(self, operator: str, place: int, dims: list[int], other: dict[str, Any]) -> int:
        """Reduce over dimensions, which are removed."""
        node = self.nodes[place]
        if operator in _REDUCED_IN_STEPS and node.operator == operator and not other:
            before = json.loads(node.attributes)["dims"]
            source = self.nodes[node.inputs[0]]
            left = [d for d in range(len(source.shape)) if d not in before]
            dims, place, node = sorted([*before, *(left[d] for d in dims)]), node.inputs[0], source
        shape = tuple(n for d, n in enumerate(node.shape) if d not in dims)
        return self.add(operator, {**other, "dims": dims}, (place,), shape, node.dtype)

    def constant(self, place: int) -> Any:
        """The value of all elements of a constant tensor; ``None``: not known."""
        node = self.nodes[place]
        return json.loads(node.attributes)["value"] if node.operator == "full" else None
