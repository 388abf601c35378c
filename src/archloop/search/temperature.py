"""The temperature of a cycle: higher while the LLM repeats itself, if asked for.

Fine-tuned on what it wrote, an LLM grows surer of it every cycle: at a fixed temperature the valid
rate nears 100 % and half of the completions are near-duplicates of known networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from archloop.config import RunConfig
    from archloop.types import CycleStats


def temperature_of(config: RunConfig, committed: Iterable[CycleStats]) -> float:
    """The sampling temperature of a cycle.

    Args:
        config: ``generation.temperature`` is that of the first cycle and the lowest;
            ``loop.temperature_step`` and what follows it say how it moves.
        committed: The cycles before, oldest first.
    """
    lowest, loop, steps = config.generation.temperature, config.loop, 0
    if not loop.temperature_step:
        return lowest
    most = int((loop.temperature_max - lowest) / loop.temperature_step + 1e-9)
    for cycle in committed:
        if cycle.n_valid < loop.least_valid * cycle.n_gen:
            steps = max(steps - 1, 0)
        elif cycle.n_near_duplicate > loop.most_near_duplicates * cycle.n_valid:
            steps = min(steps + 1, most)
    return round(lowest + steps * loop.temperature_step, 6)
