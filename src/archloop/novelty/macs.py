"""The cost of a network, the same on every machine: multiply-accumulates, from its traced graph.

Products of matrices and convolutions count, as in ``torch.utils.flop_counter`` (which reports two
operations for each multiply-accumulate); element-wise operators, pooling, normalisation and
activations do not. The count is that of a batch of one image.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

from archloop.novelty.graph import Graph

_FUSED = ("_scaled_dot_product", "_flash", "_efficient_attention", "_cudnn_rnn", "mkldnn_rnn")
"""Beginnings of operators with products inside, which a trace on the meta device does not have."""
_TRANSFORM = "_fft_"
"""Beginning of Fourier transforms, whose products depend on the algorithm."""
_UNKNOWN = frozenset(
    {"lstm", "gru", "rnn_tanh", "rnn_relu", "_trilinear", "_cdist_forward", "_pdist_forward"}
)
"""Operators whose products cannot be counted from shapes here, by the names of a trace."""


def macs(graph: Graph) -> int | None:
    """Multiply-accumulates of one forward pass of one image.

    Args:
        graph: A traced graph (:mod:`archloop.novelty.graph`).

    Returns:
        The count; ``None`` where the graph holds an operator that cannot be counted.
    """
    total = 0
    for operator, arguments, outputs in graph["nodes"]:
        if operator.startswith((*_FUSED, _TRANSFORM)) or operator in _UNKNOWN:
            return None
        if (count := _COUNTED.get(operator)) is not None:
            total += count(_Node(graph, dict(arguments), outputs))
    return total


class Cost(NamedTuple):
    """What one forward pass of one image takes, by its graph."""

    macs: int | None
    """Multiply-accumulates; ``None``: they cannot be counted."""
    elements: int
    """Numbers that operators compute."""
    operators: int


def cost(graph: Graph) -> Cost:
    """The cost of a traced graph."""
    outputs = [shape for *_, results in graph["nodes"] for shape, _ in results]
    return Cost(macs(graph), sum(prod(_sizes(shape)) for shape in outputs), len(graph["nodes"]))


class _Node:
    """One operator, with shapes in place of references."""

    def __init__(self, graph: Graph, arguments: dict[str, Any], outputs: list[Any]) -> None:
        self._nodes, self._arguments = graph["nodes"], arguments
        self.output = _sizes(outputs[0][0])

    def shape(self, name: str) -> list[int]:
        """The shape of an argument that is a tensor."""
        number, index = self._arguments[name]["input"]
        return _sizes(self._nodes[number][2][index][0])

    def value(self, name: str) -> Any:
        """An argument that is none."""
        return self._arguments.get(name)


def _sizes(shape: list[int | str]) -> list[int]:
    """Sizes for one image: ``"4N"`` is 4."""
    return [int(size[:-1]) if isinstance(size, str) else size for size in shape]


def _convolution(node: _Node) -> int:
    """Each output (of a transposed convolution: each input) meets one filter of every group."""
    positions = node.shape("input") if node.value("transposed") else node.output
    return prod(positions) * prod(node.shape("weight")[1:])


def _product(first: str) -> Callable[[_Node], int]:
    """A product of matrices: each output sums over the last size of the first factor."""
    return lambda node: prod(node.output) * node.shape(first)[-1]


def _batches_summed(node: _Node) -> int:
    """A product of batches of matrices whose results are added up."""
    batch1 = node.shape("batch1")
    return prod(node.output) * batch1[0] * batch1[-1]


_COUNTED: dict[str, Callable[[_Node], int]] = {
    "convolution": _convolution,
    "mm": _product("self"),
    "bmm": _product("self"),
    "mv": _product("self"),
    "dot": _product("self"),
    "vdot": _product("self"),
    "addmm": _product("mat1"),
    "addmv": _product("mat"),
    "baddbmm": _product("batch1"),
    "addbmm": _batches_summed,
}
