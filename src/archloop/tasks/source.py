"""The Protocol of task sources, and what they hand out.

A source says which classes and labels there are before any image is decoded, and then hands out
the images one by one, so that a large task never has to fit into memory twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from archloop.errors import UsageError

EncodedImage = bytes | Path | NDArray[np.uint8] | NDArray[np.uint16]
"""A file's content, a file, or pixels of shape (H, W) or, of 8 bits, (H, W, 3 or 4)."""


class TaskUnavailableError(UsageError):
    """The task's data is neither here nor reachable."""


@dataclass(frozen=True)
class Skipped:
    """Something in the data that is not used."""

    reason: str
    """As a summary counts it, for example ``unreadable``."""
    where: str
    """The file or row."""
    class_name: str | None = None
    """``None``: it belongs to no class."""


@dataclass(frozen=True)
class SourceSplit:
    """The labelled images of one split."""

    name: str
    """``train`` or ``test``."""
    labels: Sequence[int]
    images: Callable[[], Iterator[tuple[EncodedImage | None, str]]]
    """Iterates over the images in the order of the labels; each comes with its name. ``None``: the
    image is missing."""
    title: str = ""
    """What the data itself calls the split, for example ``Testing``."""


@dataclass(frozen=True)
class OpenedTask:
    """A task ready to be decoded."""

    class_names: tuple[str, ...]
    train: SourceSplit
    test: SourceSplit | None
    skipped: tuple[Skipped, ...] = ()
    """What is there and holds no image of the splits."""
    notes: tuple[str, ...] = ()
    """What else a reader of the summary should know."""
    unused: tuple[str, ...] = ()
    """A line on each split that could have been the test split and is not."""
    root: str = ""
    """What the names of images begin with and a summary leaves out."""


class TaskSource(Protocol):
    """Where a task's images come from; one file per implementation."""

    @property
    def name(self) -> str:
        """As in the configuration and in records."""
        ...

    @property
    def title(self) -> str:
        """As written in a prompt."""
        ...

    @property
    def default_size(self) -> int | None:
        """Pixels a side where none are configured; ``None``: as the images are."""
        ...

    def key(self) -> str:
        """Identifies the data and changes with it; cheap, as it is computed at every load."""
        ...

    def open(self) -> OpenedTask:
        """Find classes and labels.

        Raises:
            UsageError: The data is wrong; the message says where.
            TaskUnavailableError: The data cannot be had.
        """
        ...


def fingerprint(root: Path, files: Sequence[Path]) -> str:
    """Names, sizes and modification times of files, one a line; names are relative to ``root``."""
    lines = []
    for file in files:
        try:
            stat = file.stat()
        except OSError:  # a link that leads nowhere
            stat = file.lstat()
        name = (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()
        lines.append(f"{name} {stat.st_size} {stat.st_mtime_ns}")
    return "\n".join(lines)
