"""The work of training against its reference, in numbers made up."""

from __future__ import annotations

import pytest

from archloop.novelty.macs import Cost
from archloop.sandbox.host.work import (
    ALLOWED_SECONDS,
    MOST_SLOWNESS,
    MOST_WORK,
    Reference,
    extra_work,
    slowness,
)

REFERENCE = Reference(build=0.1, forward=0.001, steps=(0.5, 0.2, 0.2))
"""A step is 0.2 s for 64 images, three times a forward pass; the first prepares for 0.3 s more."""


def work(spent: float, reference: Reference = REFERENCE, steps_per_batch: int = 1) -> float:
    return extra_work(spent, reference, batches=100, batch_size=64, steps_per_batch=steps_per_batch)


def test_a_plain_epoch_is_one() -> None:
    assert work(0.5 + ALLOWED_SECONDS + 100 * 0.2) == pytest.approx(1.0)


def test_work_counts_wherever_it_is_done() -> None:
    assert work(7 * 100 * 0.2) > MOST_WORK
    assert work(1.6 * 100 * 0.2) < MOST_WORK  # two passes for each step
    assert work(2 * 100 * 0.2, steps_per_batch=2) == pytest.approx(0.97, abs=0.01)
    late = Reference(build=60.0, forward=0.001, steps=(0.5, 0.2))
    assert work(20.0, late) > MOST_WORK  # it works while it is built


def test_dawdling_in_the_reference_gains_little() -> None:
    slow = Reference(build=0.1, forward=0.001, steps=(0.5, 6.0, 6.0))
    assert work(100 * 6.0, slow) > MOST_WORK


def test_without_a_reference_the_forward_pass_is_one() -> None:
    blind = Reference(build=0.1, forward=0.001, steps=())
    assert work(100 * 64 * 0.004, blind) == pytest.approx(1.0, abs=0.1)
    assert work(10 * 100 * 64 * 0.004, blind) > MOST_WORK


def test_a_graph_must_explain_the_time_of_forward_passes() -> None:
    honest = slowness(3.5, Cost(37_748_736, 135_000, 3), images=1000, batches=5)
    assert honest is not None
    assert 0.2 < honest < 1.0
    claims_less = Cost(0, 64, 1)
    assert (slowness(3.5, claims_less, images=1000, batches=5) or 0.0) > MOST_SLOWNESS
    assert slowness(0.4, claims_less, images=1000, batches=5) == 0.0
    assert slowness(3.5, Cost(None, 64, 1), images=1000, batches=5) is None
