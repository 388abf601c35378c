"""A measurement as a row, and rows as a Markdown table with the machine below it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from archloop.machine import session


@dataclass(frozen=True)
class Row:
    """One measurement: ours, the other, and how many times better, with the goal."""

    what: str
    ours: str
    other: str = ""
    ratio: float | None = None
    goal: float | None = None

    def markdown(self) -> str:
        """A row of the table."""
        ratio = "" if self.ratio is None else f"{self.ratio:.1f}"
        goal = "" if self.goal is None else f"{self.goal:g}"
        return f"| {self.what} | {self.ours} | {self.other} | {ratio} | {goal} |"


HEADING = "| what | archloop | beside it | ratio | goal |\n|---|---|---|---|---|"


def mean_sd(values: Sequence[float]) -> str:
    """Mean, standard deviation and number of accuracies."""
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f} (n {len(values)})"


def machine() -> str:
    """What the figures were measured on."""
    found, versions = session.machine(), session.versions()
    return (
        f"{found['cores']} cores of {found['processor']}, {found['memory_gib']} GiB, "
        f"Python {versions['python']}, torch {versions['torch']}"
    )
