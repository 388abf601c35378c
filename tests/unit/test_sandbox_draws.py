"""What a network cannot predict of its measurement, and what it may not change."""

from __future__ import annotations

import numpy as np
import pytest

from archloop.sandbox.host.draws import AGAIN, Plan, draw_plan, new_key, relabelling

SHAPE = (1000, 3, 8, 8)
KEY = bytes(range(32))


def plan(key: bytes = KEY, code: str = "code", seed: int = 3) -> Plan:
    return draw_plan(key, code, seed, SHAPE, largest=250)


def test_every_image_is_asked_for_once_in_batches_of_many_sizes() -> None:
    drawn = plan()
    assert sorted(np.concatenate(drawn.batches)) == list(range(1000))
    sizes = [len(batch) for batch in drawn.batches]
    assert max(sizes) <= 250
    assert len(set(sizes)) > 1


def test_some_images_are_asked_for_again_in_smaller_batches_and_with_little_noise() -> None:
    drawn = plan()
    assert len(set(drawn.chosen)) == len(drawn.chosen) == AGAIN
    assert sorted(np.concatenate(drawn.others)) == list(range(AGAIN))
    assert max(len(batch) for batch in drawn.others) <= 48
    assert drawn.noise.shape == (AGAIN, 3, 8, 8)
    assert set(np.unique(drawn.noise)) == {-1, 0, 1}
    assert sorted(drawn.order) == list(range(1 + 2 * len(drawn.others)))


@pytest.mark.parametrize(
    "other", [plan(key=new_key()), plan(code="other"), plan(seed=4)], ids=["key", "code", "seed"]
)
def test_another_key_network_or_seed_is_asked_otherwise(other: Plan) -> None:
    drawn = plan()
    for name in ("chosen", "noise", "first"):
        assert not np.array_equal(getattr(drawn, name), getattr(other, name))
    assert not np.array_equal(np.concatenate(drawn.batches), np.concatenate(other.batches))


def test_the_same_key_asks_the_same() -> None:
    one, two = plan(), plan()
    assert np.array_equal(np.concatenate(one.batches), np.concatenate(two.batches))
    assert np.array_equal(one.noise, two.noise)


def test_few_images_are_enough() -> None:
    drawn = draw_plan(KEY, "code", 3, (3, 1, 8, 8), largest=250)
    assert sorted(drawn.chosen) == [0, 1, 2]
    assert len(drawn.first) == 3


def test_class_numbers_follow_from_seed_and_source_alone() -> None:
    assert sorted(relabelling("code", 3, 10)) == list(range(10))
    assert relabelling("code", 3, 10) == relabelling("code", 3, 10)
    assert relabelling("code", 3, 10) != relabelling("other", 3, 10)
    assert relabelling("code", 3, 10) != relabelling("code", 4, 10)
