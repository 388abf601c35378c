"""The work of training against a reference: what cannot be seen in a process is seen outside.

A network may train in any way, so that extra training cannot be told from inside its process. It
costs processor time, however, which the system counts: the time of the training process, from the
first batch on offer to its end, is compared with that of the same network, built anew in another
process, under the fixed training loop. On a GPU, where the processor only waits, it is the time on
the clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from archloop.novelty.macs import Cost

MOST_WORK = 2.0
"""Times the reference: a hundred trainings of LEMUR's networks took 1.7 at most, on a busy machine.
Methods such as sharpness-aware minimisation pass each batch twice, which is 1.6."""
ALLOWED_SECONDS = 0.75
"""Of work that belongs to no image."""
MOST_BUILD_SECONDS = 2.0
"""Work in building a network that does not count as training."""
_MOST_OF_FORWARD = 10.0
"""Times the forward pass in evaluation mode that a step of training counts at most, so that a
network that dawdles in the reference gains little; usual are 2 to 5."""
_OF_FORWARD = 4.0
"""The same where there is no reference."""
_LEAST_STEP = 0.001
"""Seconds of the shortest step."""
MOST_SLOWNESS = 25.0
"""Times the estimate from the graph; fifty networks of LEMUR took 0.2 to 2.6 of it."""
_PER_MAC, _PER_ELEMENT, _PER_OPERATOR = 2e-10, 1e-9, 2e-5
"""Seconds: of a multiply-accumulate, of an element of an operator's result, and of starting an
operator; on a CPU, within a factor of five."""


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
    step = max(min(step, _MOST_OF_FORWARD * forward), _LEAST_STEP)
    allowed = ALLOWED_SECONDS + min(first, MOST_BUILD_SECONDS)
    early = max(0.0, reference.build - MOST_BUILD_SECONDS)
    honest = max(1, batches) * step * steps_per_batch
    return max(0.0, spent + early - allowed) / honest


def slowness(seconds: float, cost: Cost, *, images: int, batches: int) -> float | None:
    """Time of forward passes as a multiple of what the graph explains.

    A graph is recorded in a process of the network, which may leave operators out.

    Args:
        seconds: Of all forward passes, on a CPU.
        cost: Of the traced graph.
        images: Images that passed.
        batches: In so many batches.

    Returns:
        The multiple; ``None`` where the operators cannot be counted.
    """
    if cost.macs is None:
        return None
    explained = images * (cost.macs * _PER_MAC + cost.elements * _PER_ELEMENT)
    explained += batches * cost.operators * _PER_OPERATOR
    return max(0.0, seconds - ALLOWED_SECONDS) / max(explained, _LEAST_STEP)
