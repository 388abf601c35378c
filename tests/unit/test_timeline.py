from __future__ import annotations

import pytest

from archloop.report.timeline import lanes, timelines
from archloop.types import Span

SPANS = [
    Span(1, "fine-tune", None, 0.0, 40.0),
    Span(1, "generate", 0, 50.0, 60.0),
    Span(1, "generate", 1, 50.0, 70.0),
    Span(1, "evaluate", 0, 60.0, 90.0),
    Span(1, "evaluate", 1, 70.0, 80.0),
    Span(1, "evaluate", 2, 100.0, 110.0),  # nothing was evaluated for 10 s
    Span(2, "generate", 0, 200.0, 210.0),
]


def test_overlap_is_wall_time_over_the_longer_stage() -> None:
    first, second = timelines(SPANS)
    assert (first.finetune, first.generate, first.evaluate) == (40.0, 20.0, 40.0)
    assert (first.longest, first.wall) == (30.0, 60.0)
    assert first.overlap == pytest.approx(1.5)
    assert (second.cycle, second.evaluate, second.overlap) == (2, None, None)


def test_a_pause_is_no_wall_time() -> None:
    first, second = timelines(SPANS, interrupted={1})
    assert (first.wall, first.overlap) == (None, None)
    assert (first.generate, first.evaluate) == (20.0, 40.0)
    assert second.wall == 10.0


def test_without_spans_there_is_no_cycle() -> None:
    assert timelines([]) == []


def test_lanes_hold_what_does_not_overlap() -> None:
    assert [[s.index for s in lane] for lane in lanes(SPANS[3:6])] == [[0, 2], [1]]
