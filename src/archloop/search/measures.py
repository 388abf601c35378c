"""The measures of a valid candidate: what each is, which way is better, and in what unit.

A new measure is an entry here and a row of the store by its name, never a new column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """A named number of a valid candidate."""

    name: str
    direction: Literal["max", "min"]
    """Whether more or less of it is better."""
    unit: str
    description: str


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(
            "first_epoch_accuracy",
            "max",
            "fraction",
            "top-1 on validation images after one epoch",
        ),
        Measure(
            "harness_accuracy", "max", "fraction", "the same, trained by the fixed training loop"
        ),
        Measure("n_params", "min", "parameters", "trainable and frozen parameters"),
        Measure("macs", "min", "multiply-accumulates", "one forward pass of one image"),
        Measure(
            "work", "min", "ratio", "work of its training over that of the fixed training loop"
        ),
        Measure("train_seconds", "min", "seconds", "wall clock of the epoch, on this machine"),
    )
}
"""Every measure by its name."""
