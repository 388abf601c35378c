"""Image and label columns of a dataset, found by their type, as names differ between datasets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archloop.errors import UsageError

_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")
"""Usual column names, tried in this order where the type alone does not decide."""


@dataclass(frozen=True)
class Columns:
    """The image column and the label column of a dataset."""

    image: str
    label: str
    class_names: tuple[str, ...] | None
    """``None``: the label column holds plain values, which are the classes."""


def find_columns(features: Mapping[str, Any], label: str | None, where: str) -> Columns:
    """Find the columns of an image classification dataset.

    Args:
        features: ``datasets.Features``: column name to type.
        label: The label column, where it is known; ``None``: the only ``ClassLabel``, else the
            first of the usual names.
        where: What to call the dataset in an error.

    Raises:
        UsageError: There is no image column, several of them, or no clear label column.
    """
    images = [name for name, feature in features.items() if _is_image(feature)]
    if len(images) != 1:
        raise UsageError(
            f"{where}: expected one image column, found {images or 'none'} "
            f"among the columns {', '.join(features)}"
        )
    named = [name for name, feature in features.items() if hasattr(feature, "names")]
    plain = [name for name, feature in features.items() if _is_plain(feature)]
    usual = [name for name in _LABEL_NAMES if name in named] or [
        name for name in _LABEL_NAMES if name in plain
    ]
    candidates = [label] if label and label in features else named if len(named) == 1 else usual
    if not candidates:
        raise UsageError(
            f"{where}: no label column found among the columns {', '.join(features)}; expected a "
            f"ClassLabel, or integers or text named {', '.join(_LABEL_NAMES)}"
        )
    column = candidates[0]
    names = getattr(features[column], "names", None)
    return Columns(images[0], column, tuple(map(str, names)) if names else None)


def number_labels(
    values: Mapping[str, Sequence[Any]], columns: Columns, where: str
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Labels as numbers, and the names of the classes.

    Args:
        values: The label column of each split.
        columns: With or without known class names.
        where: What to call the dataset in an error.

    Raises:
        UsageError: A row has no label, or a class has no training image.
    """
    for split, labels in values.items():
        if None in labels:
            raise UsageError(f"{where}: {split} row {list(labels).index(None)} has no label")
    if columns.class_names is not None:
        return columns.class_names, {split: list(labels) for split, labels in values.items()}
    known = {value: number for number, value in enumerate(sorted(set(values["train"])))}
    for split, labels in values.items():
        for value in labels:
            if value not in known:
                raise UsageError(f"{where}: class {value!r} of {split} has no training image")
    numbered = {split: [known[value] for value in labels] for split, labels in values.items()}
    return tuple(str(value) for value in known), numbered


def _is_image(feature: Any) -> bool:
    if type(feature).__name__ == "Image":
        return True
    return isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}


def _is_plain(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ == "Value" and bool(re.match("u?int|(large_)?string", kind))
