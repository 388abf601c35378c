"""Splits whose rows hold an image and a label, wherever the rows come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from archloop.errors import UsageError
from archloop.tasks.columns import Classes, Columns, find_columns
from archloop.tasks.source import EncodedImage, OpenedTask, SourceSplit
from archloop.tasks.splits import by_role, first_usable, usual_names


class Rows(Protocol):
    """The rows of one split."""

    @property
    def features(self) -> Mapping[str, Any]:
        """``datasets.Features``: column name to type."""
        ...

    def column(self, name: str) -> list[Any]:
        """The values of a column.

        Raises:
            UsageError: There is none of this name.
        """
        ...

    def images(self, name: str) -> Iterator[tuple[EncodedImage | None, str]]:
        """The images of a column, each with its name for a message."""
        ...


def open_rows(
    found: Mapping[str, Rows], label: str | None, where: str, notes: Sequence[str] = ()
) -> OpenedTask:
    """A task of the splits that were found.

    Args:
        found: The rows of each split, by the data's own name for it.
        label: The label column, where it is known.
        where: What to call the data in an error.
        notes: What a reader of the summary should know of them.

    Raises:
        UsageError: There is no training split, or no clear image and label column.
    """
    train, tests, rest = by_role(found, where)
    if train is None:
        raise UsageError(
            f"{where}: no training split; it has {', '.join(found)}; expected {usual_names()}"
        )
    columns = find_columns(found[train].features, label, where)
    values = found[train].column(columns.label)
    classes = Classes.of(values, columns.class_names, f"{where}: {train}")
    labels = classes.labels(values, f"{where}: {train}")

    def test_split(name: str) -> SourceSplit:
        own = found[name].column(columns.label)
        return _split("test", name, found[name], columns, classes.labels(own, name))

    test, lines = first_usable(
        ((name, partial(test_split, name)) for name in tests), len(classes.names)
    )
    unknown = [f"{name} is not used (not the name of a split)" for name in rest]
    return OpenedTask(
        classes.names,
        _split("train", train, found[train], columns, labels),
        test,
        notes=(*notes, *unknown),
        unused=tuple(lines),
    )


def encoded(value: Any, base: Path) -> EncodedImage | None:
    """The image of a row, which holds its bytes or the path of its file.

    Args:
        value: Of an image column.
        base: The folder that paths are relative to.

    Returns:
        ``None``: the row holds neither.
    """
    if isinstance(value, bytes):
        return value or None
    if value and value.get("bytes"):
        content: bytes = value["bytes"]
        return content
    if value and value.get("path"):
        for file in (base / value["path"], Path(value["path"])):
            if file.is_file():
                return file
    return None


def _split(
    split: str, title: str, rows: Rows, columns: Columns, labels: Sequence[int]
) -> SourceSplit:
    return SourceSplit(split, labels, lambda: rows.images(columns.image), title)
