"""Finds networks that give the same outputs under equal weights, whatever their graphs look like.

The numbers are made in a candidate's process (:mod:`archloop.sandbox.candidate.outputs`): the
spread of the logits over some images, and projections of the logits, in the same unit. They are a
candidate's own statement, like its graph; a network without them is not compared.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from typing import Any

LENGTH = 8
"""Numbers of a network. Two networks that compute something else agree in all by chance about once
in ``TOLERANCE ** -LENGTH``."""
TOLERANCE = 1e-4
"""Largest difference of the same outputs, as a share of the spread."""

Outputs = tuple[float, ...]


def checked_outputs(value: Any) -> Outputs | None:
    """Outputs from an untrusted process; ``None``: not known, or none."""
    if not isinstance(value, list) or len(value) != LENGTH:
        return None
    if not all(type(number) is float and math.isfinite(number) for number in value):
        return None
    return tuple(value) if value[0] > 0 else None


class OutputIndex:
    """Known networks by their outputs."""

    def __init__(self) -> None:
        self._known: list[tuple[Outputs, str]] = []
        """Sorted, so by spread."""

    def add(self, id: str, outputs: Outputs) -> None:
        """Add a known network."""
        insort(self._known, (outputs, id))

    def same(self, outputs: Outputs) -> set[str]:
        """Ids of the known networks with the same outputs."""
        spread = outputs[0]
        most = TOLERANCE * spread
        found, place = set(), bisect_left(self._known, ((spread - most,), ""))
        while place < len(self._known) and (known := self._known[place])[0][0] <= spread + most:
            if max(abs(a - b) for a, b in zip(known[0], outputs, strict=True)) <= most:
                found.add(known[1])
            place += 1
        return found
