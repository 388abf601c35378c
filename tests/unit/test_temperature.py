"""The temperature of each cycle, from what the cycles before came to."""

from __future__ import annotations

from typing import Any

import pytest

from archloop.config import PaperSearch, resolve
from archloop.errors import ConfigError
from archloop.search.temperature import temperature_of
from archloop.types import CycleStats


def configured(**search: Any) -> PaperSearch:
    found = resolve({"generation": {"temperature": 1.0}, "search": search}).search
    assert isinstance(found, PaperSearch)
    return found


def cycle(valid: int, near_duplicates: int) -> CycleStats:
    return CycleStats(
        cycle=1,
        n_gen=100,
        n_valid=valid,
        n_at_floor=valid,
        n_near_duplicate=near_duplicates,
        n_accepted=valid - near_duplicates,
        accuracies=(),
        corpus_size=1,
        adapter="cycle_01",
        corpus_sha256="",
        outcomes={},
    )


REPEATS, INVALID, SOUND = cycle(90, 10), cycle(84, 80), cycle(85, 8)


@pytest.mark.parametrize(
    ("cycles", "wanted"),
    [
        ([], 1.0),
        ([SOUND], 1.0),
        ([cycle(90, 9)], 1.0),  # as many as are allowed
        ([REPEATS], 1.1),
        ([REPEATS] * 3, 1.3),
        ([REPEATS] * 9, 1.3),  # whole steps up to 1.35
        ([INVALID], 1.0),  # never below the configured one
        ([INVALID, REPEATS], 1.1),
        ([REPEATS, REPEATS, INVALID, SOUND], 1.1),
        ([REPEATS] * 9 + [INVALID], 1.2),
    ],
)
def test_it_rises_while_the_llm_repeats_itself(cycles: list[CycleStats], wanted: float) -> None:
    config = configured(temperature_step=0.1, temperature_max=1.35)
    assert temperature_of(1.0, config, cycles) == wanted


@pytest.mark.parametrize("highest", [1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0])
def test_it_rises_to_the_highest_in_whole_steps(highest: float) -> None:
    config = configured(temperature_step=0.1, temperature_max=highest)
    assert temperature_of(1.0, config, [REPEATS] * 20) == highest  # (1.2 - 1.0) / 0.1 is below 2


def test_it_stays_unless_asked_for() -> None:
    assert temperature_of(1.0, configured(), [REPEATS] * 5) == 1.0


def test_a_highest_below_the_first_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"search\.temperature_max: below"):
        configured(temperature_step=0.1, temperature_max=0.9)
