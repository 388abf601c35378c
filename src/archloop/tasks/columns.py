"""Image and label columns of a dataset, found by their type, as names differ between datasets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

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
    images = [name for name, feature in features.items() if _is_image(feature)] or [
        name for name, feature in features.items() if _is_bytes(feature)
    ]
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


def has_image_column(features: Mapping[str, Any]) -> bool:
    """Whether a column holds images, not only their paths."""
    return any(_is_image(feature) or _is_bytes(feature) for feature in features.values())


@dataclass(frozen=True)
class Classes:
    """The classes of a training split, and the number of each label."""

    names: tuple[str, ...]
    _numbers: Mapping[Any, int] | None = None
    """``None``: labels are numbers already."""

    @classmethod
    def of(cls, values: Sequence[Any], names: tuple[str, ...] | None, where: str) -> Self:
        """The classes that the labels of the training split name.

        Args:
            values: Its labels, in the order of the rows.
            names: The names of the classes, where labels are their numbers.
            where: What to call the split in an error.

        Raises:
            UsageError: A row has no label.
        """
        _check_present(values, where)
        if names is not None:
            return cls(names)
        known = sorted(set(values))
        return cls(tuple(str(value) for value in known), {v: n for n, v in enumerate(known)})

    def labels(self, values: Sequence[Any], where: str) -> list[int]:
        """The labels of a split as numbers.

        Raises:
            UsageError: A row has no label, or a class that the training split lacks.
        """
        _check_present(values, where)
        if self._numbers is None:
            return list(values)
        for value in values:
            if value not in self._numbers:
                raise UsageError(f"class {value!r} of {where} has no training image")
        return [self._numbers[value] for value in values]


def _check_present(values: Sequence[Any], where: str) -> None:
    for row, value in enumerate(values):
        if value is None:
            raise UsageError(f"{where} row {row} has no label")


def _is_image(feature: Any) -> bool:
    if type(feature).__name__ == "Image":
        return True
    return isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}


def _is_bytes(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")) in ("binary", "large_binary")


def _is_plain(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ == "Value" and bool(re.match("u?int|(large_)?string", kind))
