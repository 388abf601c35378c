"""The report's drawings as SVG: the curves of a run, and when its work was done."""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from archloop.report.structures import Structures
from archloop.report.summary import CycleSummary, Interval
from archloop.report.timeline import lanes
from archloop.types import Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"fine-tune": "#b07aa1", "generate": "#4e79a7", "evaluate": "#f28e2b"}


def cycles_svg(title: str, cycles: Sequence[CycleSummary]) -> str:
    """The paper's three curves over the cycles: valid rate, accuracy, accepted networks.

    Args:
        title: Name of the run.
        cycles: The committed cycles.
    """
    from matplotlib.ticker import MaxNLocator

    numbers = [c.stats.cycle for c in cycles]
    with drawing(1, 3, (12, 3.6)) as (figure, (valid, accuracy, accepted)):
        figure.suptitle(title, parse_math=False)
        _curve(valid, numbers, [c.valid.rate for c in cycles], [c.valid.interval for c in cycles])
        valid.set(title="valid, % of completions [Wilson 95 %]", ylim=(0, 102))
        means = [c.mean for c in cycles]
        _curve(accuracy, numbers, [m.value for m in means], [m.interval for m in means], "mean")
        for values, style, label in (
            ([c.best for c in cycles], "o--", "best"),
            ([c.stats.threshold for c in cycles], ":", "threshold"),
        ):
            accuracy.plot(numbers, _percent(values), style, color="#555", ms=3, lw=1, label=label)
        accuracy.set(title="first-epoch accuracy, % [t 95 %]")
        accuracy.legend(fontsize=8)
        floor = [c.at_floor for c in cycles]
        _curve(accepted, numbers, [p.rate for p in floor], [p.interval for p in floor], "at floor")
        near = [c.near_duplicate.rate for c in cycles]
        accepted.plot(numbers, _percent(near), "s-", color="#e15759", ms=3, label="near-duplicate")
        taken = [c.stats.n_accepted / c.stats.n_valid if c.stats.n_valid else None for c in cycles]
        accepted.plot(numbers, _percent(taken), "^-", color="#59a14f", ms=3, label="accepted")
        accepted.set(title="% of the valid", ylim=(0, 102))
        accepted.legend(fontsize=8)
        for axes in (valid, accuracy, accepted):
            axes.set_xlabel("cycle")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
        figure.tight_layout()
        return svg(figure)


def classes_svg(title: str, cycles: Sequence[Structures]) -> str:
    """Shares of structure classes over the cycles, of the valid and of the accepted networks.

    Args:
        title: Name of the run.
        cycles: Of the committed cycles, from 1.
    """
    from matplotlib.ticker import MaxNLocator

    total = Counter[str]()
    for cycle in cycles:
        total.update(cycle.valid)
    shown = [name for name, _ in total.most_common(_CLASSES_DRAWN)]
    with drawing(1, 2, (12, 4.4)) as (figure, both):
        figure.suptitle(title, parse_math=False)
        kinds = [[c.valid for c in cycles], [c.accepted for c in cycles]]
        for axes, name, counts in zip(both, ("valid", "accepted"), kinds, strict=True):
            _shares(axes, counts, shown)
            axes.set(title=f"structure classes, % of the {name}", ylim=(0, 100), xlabel="cycle")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        names = both[0].get_legend_handles_labels()
        figure.legend(*names, loc="center left", bbox_to_anchor=(0.80, 0.5), fontsize=8)
        figure.tight_layout(rect=(0, 0, 0.80, 1))
        return svg(figure)


def _shares(axes: Axes, counts: Sequence[Counter[str]], shown: Sequence[str]) -> None:
    """Stacked bars of the shares of classes, a bar a cycle; the other classes on top."""
    from matplotlib import colormaps

    numbers = range(1, len(counts) + 1)
    colours = dict(zip(shown, colormaps["tab20"].colors, strict=False))  # type: ignore[attr-defined]
    bottom = [0.0] * len(counts)
    for name in (*shown, _OTHERS):
        heights = []
        for cycle in counts:
            n = sum(
                k for c, k in cycle.items() if c == name or (name is _OTHERS and c not in shown)
            )
            heights.append(100 * n / cycle.total() if n else 0.0)
        colour = colours.get(name, "#bbbbbb")
        label = "+\n".join(textwrap.wrap(name.replace("+", " "), _LEGEND)).replace(" ", "+")
        axes.bar(numbers, heights, 0.85, bottom=bottom, color=colour, label=label, ec="white")
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]


_CLASSES_DRAWN = 14
"""Most classes with a colour of their own."""
_OTHERS = "others"
_LEGEND = 30
"""Most characters of a class in a line of the legend."""


def timeline_svg(title: str, spans: Sequence[Span]) -> str:
    """When the work of each cycle was done, in seconds from the cycle's start.

    The first lane of a cycle has the LLM: the fine-tune, then sampling with a mark at each
    completion. The others have the candidates, as many lanes as were evaluated at a time.
    """
    cycles = sorted({s.cycle for s in spans})
    with drawing(1, 1, (12, 1.2 + 0.55 * len(cycles))) as (figure, axes):
        for row, cycle in enumerate(cycles):
            _cycle_lanes(axes, row, [s for s in spans if s.cycle == cycle])
        axes.set_title(title, parse_math=False)
        axes.set(xlabel="seconds", ylim=(len(cycles), 0))
        axes.set_yticks([row + 0.4 for row in range(len(cycles))], [f"cycle {n}" for n in cycles])
        for stage, colour in _COLOURS.items():
            axes.bar(0, 0, color=colour, label=stage)
        axes.legend(fontsize=8, loc="upper right")
        figure.tight_layout()
        return svg(figure)


def _cycle_lanes(axes: Axes, row: int, spans: Sequence[Span]) -> None:
    """Draw one cycle between ``row`` and ``row`` + 0.8."""
    start = min(s.begin for s in spans)
    rows = lanes(s for s in spans if s.stage == "evaluate")
    height = 0.8 / (1 + len(rows))

    def bars(stage: str, pieces: Sequence[tuple[float, float]], lane: int) -> None:
        places = [(begin - start, end - begin) for begin, end in pieces]
        where = (row + lane * height, 0.9 * height)
        axes.broken_barh(places, where, color=_COLOURS[stage], ec="white", lw=0.3)

    bars("fine-tune", [(s.begin, s.end) for s in spans if s.stage == "fine-tune"], 0)
    sampled = [s for s in spans if s.stage == "generate"]
    for begin in sorted({s.begin for s in sampled}):
        ends = sorted(s.end for s in sampled if s.begin == begin)
        bars("generate", list(zip([begin, *ends], ends, strict=False)), 0)
    for lane, found in enumerate(rows, start=1):
        bars("evaluate", [(s.begin, s.end) for s in found], lane)


def _curve(
    axes: Axes,
    numbers: Sequence[int],
    values: Sequence[float | None],
    intervals: Sequence[Interval | None],
    label: str | None = None,
) -> None:
    """A curve in percent with the interval of each point."""
    ends = [
        (v or 0.0, v or 0.0) if i is None else i for v, i in zip(values, intervals, strict=True)
    ]
    down = [100 * ((v or 0.0) - low) for v, (low, _) in zip(values, ends, strict=True)]
    up = [100 * (high - (v or 0.0)) for v, (_, high) in zip(values, ends, strict=True)]
    axes.errorbar(
        numbers,
        _percent(values),
        yerr=[down, up],
        fmt="o-",
        color="#4e79a7",
        ms=4,
        capsize=2,
        elinewidth=0.8,
        label=label,
    )


def _percent(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if v is None else 100 * v for v in values]


@contextmanager
def drawing(
    rows: int,
    columns: int,
    inches: tuple[float, float],
    heights: Sequence[float] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, closed afterwards; drawn the same each time.

    Args:
        rows: Of axes.
        columns: Of axes.
        inches: (width, height) of the figure.
        heights: Relative heights of the rows: the axes are an array then, also a single one;
            ``None``: equal ones.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "archloop", "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=inches, height_ratios=heights, squeeze=heights is None
        )
        try:
            yield figure, axes
        finally:
            pyplot.close(figure)


def svg(figure: Any) -> str:
    """The figure as text."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
