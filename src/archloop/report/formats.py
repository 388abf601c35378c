"""Figures as people read them: percent, intervals in brackets, a dash for what was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from archloop.report.summary import Interval, Mean, Proportion

Row = Sequence[Any]
"""The cells of a line of a table."""
NOTHING = "-"


def percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction in percent, without the sign."""
    return NOTHING if fraction is None else f"{100 * fraction:.{digits}f}"


def bracket(interval: Interval | None, digits: int = 1) -> str:
    """An interval of fractions as `` [low, high]`` in percent; empty without one."""
    if interval is None:
        return ""
    low, high = interval
    return f" [{percent(low, digits)}, {percent(high, digits)}]"


def proportion(value: Proportion) -> str:
    """``44.0 [31.2, 57.7] (22/50)``, in percent."""
    return f"{percent(value.rate, 1)}{bracket(value.interval)} ({value.k}/{value.n})"


def mean(value: Mean) -> str:
    """``28.06 [25.10, 31.02]``, in percent."""
    return f"{percent(value.value)}{bracket(value.interval, 2)}"


def count(value: int | None) -> str:
    """An integer with thousands separated."""
    return NOTHING if value is None else f"{value:,}"


def money(value: float | None) -> str:
    """An amount in the currency of the configured prices: four significant digits below 100."""
    if value is None:
        return NOTHING
    return f"{value:,.2f}" if value >= 100 else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """Seconds as ``45 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def rough(seconds: float, *, is_whole: bool = True) -> str:
    """Seconds that were estimated, with few digits: ``~20 s``, ``~4 min``, ``~2 h 05 min``.

    Where part of them is unknown, ``>`` stands in the place of ``~``.
    """
    sign = "~" if is_whole else ">"
    if seconds < 100:
        return f"{sign}{max(5, 5 * round(seconds / 5))} s"
    if seconds < 100 * 60:
        return f"{sign}{round(seconds / 60)} min"
    return f"{sign}{duration(300 * round(seconds / 300))}"


def clock(seconds: float | None) -> str:
    """Seconds as ``h:mm:ss``."""
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def floor(min_accuracy: float) -> str:
    """The heading of the column of candidates at or above ``selection.min_accuracy``."""
    return f">= {100 * min_accuracy:g} %"


def table(head: Row, rows: Iterable[Row]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|")
