"""The work of training against a reference: what cannot be seen in a process is seen outside.

A network may train in any way, so that extra training cannot be told from inside its process. It
costs processor time, however, which the system counts: the time of the training process, from the
first batch on offer to its end, is compared with that of the same network, built anew in another
process, under the fixed training loop. On a GPU, where the processor only waits, it is the time on
the clock.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_WORK = 3.0
"""Times the reference. Methods such as sharpness-aware minimisation need two; a busy machine adds
up to a half."""
ALLOWED_SECONDS = 0.5
"""Of work that belongs to no batch."""
MOST_BUILD_SECONDS = 2.0
"""Work in building a network that does not count as training."""
_MOST_OF_FORWARD = 12.0
"""Times the forward pass in evaluation mode: more than a training step of an honest network takes,
so that a network that idles in the reference gains little by it."""
_OF_FORWARD = 4.0
"""The same of a usual network; where there is no reference."""
_LEAST_STEP = 0.01
"""Seconds of a step that need no explanation: in small networks most of it is overhead."""


@dataclass(frozen=True)
class Reference:
    """Processor seconds of one network outside its own training."""

    build: float
    """Import, instantiation, dummy forward."""
    forward: float
    """Of an image in evaluation mode."""
    steps: tuple[float, ...]
    """Steps of the fixed loop, of one batch each; the first includes one-time preparation."""


def extra_work(
    spent: float, reference: Reference, *, batches: int, batch_size: int, steps_per_batch: int = 1
) -> float:
    """The work of training as a multiple of the reference's; an honest network is near 1.

    Args:
        spent: Seconds of the training process, from the first batch on offer to its end.
        reference: Of the same network.
        batches: Batches of the epoch.
        batch_size: Images in a batch.
        steps_per_batch: Optimiser steps allowed for each batch.
    """
    forward = reference.forward * batch_size
    first, *later = reference.steps or (0.0,)
    step = sum(later) / len(later) if later else _OF_FORWARD * forward
    step = max(min(step, _MOST_OF_FORWARD * forward), _LEAST_STEP / 10)
    allowed = ALLOWED_SECONDS + min(first, MOST_BUILD_SECONDS)
    early = max(0.0, reference.build - MOST_BUILD_SECONDS)
    honest = max(1, batches) * step * steps_per_batch
    return max(0.0, spent + early - allowed) / honest
