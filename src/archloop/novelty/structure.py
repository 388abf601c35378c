"""The structure of a network: what it is built of beside a plain stack of layers.

A network's structures are read from its measures (:data:`STRUCTURES`), so that a class can be told
of every stored row.
"""

from __future__ import annotations

from collections.abc import Mapping

PLAIN = "plain"
"""The class of a network without any structure: a chain of layers."""

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
