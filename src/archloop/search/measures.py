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
    direction: Literal["max", "min"] | None
    """Whether more or less of it is better; ``None``: neither, it describes the network."""
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
        Measure("depth", None, "layers", "weighted layers on the longest path"),
        Measure("skips", None, "sums", "of two paths"),
        Measure("joins", None, "concatenations", "of two values that depend on the image"),
        Measure("gates", None, "products", "of two paths"),
        Measure("grouped_convs", None, "convolutions", "with groups, but for depthwise ones"),
        Measure("depthwise_convs", None, "convolutions", "one filter for each channel"),
        Measure("attentions", None, "products", "of two matrices that depend on the image"),
        Measure("dilated_convs", None, "convolutions", "with gaps between their weights"),
        Measure("asymmetric_convs", None, "convolutions", "with a kernel that is not square"),
        Measure("recurrents", None, "layers", "recurrent ones, a direction each"),
        Measure("global_pools", None, "reductions", "over height and width"),
        Measure("norms", None, "layers", "of normalisation"),
        Measure("linear_share", None, "fraction", "of the parameters, in linear layers"),
    )
}
"""Every measure by its name."""
