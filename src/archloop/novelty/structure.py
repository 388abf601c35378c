"""The structure of a network: what it is built of beside a plain stack of layers.

A *structure profile* is read from the canonical graph and stored as measures
(:mod:`archloop.novelty.profile`); the *structure class* says which structures are there at all
(:func:`structure_class`), the *niche* the class and the cost (:func:`niche`). Both are read from
the measures, so that they can be told of every stored row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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


def cell_order(cell: str) -> int:
    """A key that sorts cells of MACs by cost; what is in no cell comes last.

    >>> sorted(["2-4M", "uncounted", "1-2M", "<1M", ">=1074M"], key=cell_order)
    ['<1M', '1-2M', '2-4M', '>=1074M', 'uncounted']
    """
    cells = [macs_cell(2**level - 1) for level in range(_FIRST_CELL, _LAST_CELL + 2)]
    return cells.index(cell) if cell in cells else len(cells)


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
