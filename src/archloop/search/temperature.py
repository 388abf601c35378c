"""The temperature of a cycle: higher while the LLM repeats itself, if asked for.

Fine-tuned on what it wrote, an LLM grows surer of it every cycle: at a fixed temperature the valid
rate nears 100 % and half of the completions are near-duplicates of known networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from archloop.config import PaperSearch
    from archloop.types import CycleStats


def temperature_of(lowest: float, search: PaperSearch, committed: Iterable[CycleStats]) -> float:
    """The sampling temperature of a cycle.

    Args:
        lowest: ``generation.temperature``, that of the first cycle.
        search: ``temperature_step`` and the keys after it say how it moves.
        committed: The cycles before, oldest first.
    """
    if not search.temperature_step:
        return lowest
    steps = 0
    most = int((search.temperature_max - lowest) / search.temperature_step + 1e-9)
    for cycle in committed:
        if cycle.n_valid < search.least_valid * cycle.n_gen:
            steps = max(steps - 1, 0)
        elif cycle.n_near_duplicate > search.most_near_duplicates * cycle.n_valid:
            steps = min(steps + 1, most)
    return round(lowest + steps * search.temperature_step, 6)
