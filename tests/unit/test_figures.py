from __future__ import annotations

from xml.etree import ElementTree

from archloop.report.figures import cycles_svg, timeline_svg
from archloop.report.summary import CycleSummary
from archloop.types import CycleStats, Span

SVG = "{http://www.w3.org/2000/svg}"
SPANS = [
    Span(1, "fine-tune", None, 0.0, 40.0),
    Span(1, "generate", 0, 50.0, 60.0),
    Span(1, "generate", 1, 50.0, 70.0),
    Span(1, "evaluate", 0, 60.0, 90.0),
    Span(1, "evaluate", 1, 70.0, 80.0),
    Span(2, "generate", 0, 200.0, 210.0),
]


def stats(cycle: int, accuracies: tuple[float, ...]) -> CycleStats:
    return CycleStats(
        cycle=cycle,
        n_gen=4,
        n_valid=len(accuracies),
        n_at_floor=sum(a >= 0.4 for a in accuracies),
        n_near_duplicate=0,
        n_accepted=0,
        accuracies=accuracies,
        corpus_size=1,
        adapter="cycle_01",
        corpus_sha256="ab" * 32,
        outcomes={},
        wall_seconds=None,
        n_tokens=None,
    )


def texts(drawing: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(drawing).iter(f"{SVG}text")]


def test_timeline_has_a_band_a_cycle_and_its_pieces() -> None:
    assert "$_$" in texts(timeline_svg("$_$", SPANS)), "no formula"
    drawing = timeline_svg("<run> & more", SPANS)
    assert {"<run> & more", "cycle 1", "cycle 2", "fine-tune", "evaluate"} <= set(texts(drawing))
    later = [*SPANS[:4], Span(1, "evaluate", 1, 75.0, 80.0), *SPANS[5:]]
    assert timeline_svg("<run> & more", later) != drawing


def test_curves_are_drawn_the_same_each_time_and_bear_a_cycle_without_valid_ones() -> None:
    cycles = [CycleSummary.of(stats(1, (0.3, 0.5))), CycleSummary.of(stats(2, ()))]
    drawing = cycles_svg("$_$ run", cycles)
    assert drawing == cycles_svg("$_$ run", cycles)
    assert {"$_$ run", "best", "threshold", "near-duplicate", "accepted"} <= set(texts(drawing))


def test_the_curves_follow_the_figures() -> None:
    low = cycles_svg("run", [CycleSummary.of(stats(1, (0.3, 0.5)))])
    high = cycles_svg("run", [CycleSummary.of(stats(1, (0.6, 0.7)))])
    assert low != high
