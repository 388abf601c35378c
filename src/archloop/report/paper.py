"""The paper's own figures, to lay beside ours (table 2 and section 4)."""

from __future__ import annotations

from typing import NamedTuple


class PaperCycle(NamedTuple):
    """A row of the paper's table 2, in its units."""

    cycle: int
    valid: float
    """Percent."""
    best: float
    """Percent."""
    mean: float
    """Percent."""
    above_40: float
    """Percent of the valid candidates at 40 % or more."""
    accepted: int
    """Named "unique models" there."""
    corpus: int
    """Named "total train" there."""


TABLE_2 = (
    PaperCycle(1, 44.0, 47.78, 28.06, 2.04, 1, 1698),
    PaperCycle(5, 32.0, 49.13, 29.88, 6.82, 9, 1724),
    PaperCycle(10, 53.8, 55.48, 37.70, 38.04, 18, 1785),
    PaperCycle(15, 66.8, 58.60, 47.40, 80.70, 34, 1911),
    PaperCycle(18, 59.1, 63.98, 50.99, 96.81, 38, 2025),
    PaperCycle(22, 41.8, 57.62, 49.48, 92.86, 30, 2154),
)

WHOLE_RUN = (
    "Over its 22 cycles: mean valid rate 50.6 % [45.0, 56.1]; mean first-epoch accuracy 42.32 % "
    "[41.80, 42.83] over 1,754 valid candidates; 455 accepted."
)
"""Section 4."""
