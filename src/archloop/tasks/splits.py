"""Which split a folder, file or column value names, whatever its case and spelling."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from archloop.errors import UsageError
from archloop.tasks.source import SourceSplit

Role = Literal["train", "test", "validation"]

SYNONYMS: Mapping[Role, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "validate", "dev", "devel", "development"),
}
"""Usual names of each split. ``protocol.validation = "test"`` prefers ``test`` to ``validation``;
within a split the first name here is preferred."""

_DECORATION = frozenset(
    [
        "set",
        "split",
        "data",
        "dataset",
        "folder",
        "dir",
        "images",
        "image",
        "imgs",
        "img",
        "pictures",
        "photos",
        "seg",
    ]
)
"""Words beside the split's own in names such as ``train_images`` and ``Training set``."""
_ROLES = {name: role for role, names in SYNONYMS.items() for name in names}


def split_role(name: str) -> Role | None:
    """The split that a name stands for; ``None``: it is not the name of one."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", name).casefold())
    own = [word.removesuffix("set") for word in words if word not in _DECORATION]
    return _ROLES.get(own[0]) if len(own) == 1 else None


def usual_names() -> str:
    """The names for an error."""
    return "; ".join(
        f"{', '.join(names)} ({role})" if role != names[0] else ", ".join(names)
        for role, names in SYNONYMS.items()
    )


def by_role(found: Iterable[str], where: object) -> tuple[str | None, list[str], list[str]]:
    """Sort the names of splits.

    Args:
        found: The names.
        where: What to call the data in an error.

    Returns:
        The training split; those that could be the test split, the preferred first; the rest.

    Raises:
        UsageError: Two are the training split.
    """
    roles: dict[str, list[str]] = {"train": [], "test": [], "validation": []}
    rest = []
    for name in found:
        role = split_role(name)
        if role is None:
            rest.append(name)
        else:
            roles[role].append(name)
    if len(roles["train"]) > 1:
        both = " and ".join(roles["train"])
        raise UsageError(f"{where}: {both} are both the training split; keep one")

    def usual_first(name: str) -> tuple[int, str]:
        order = [synonym for names in SYNONYMS.values() for synonym in names]
        return (order.index(name) if name in order else len(order)), name

    tests = [
        name for role in ("test", "validation") for name in sorted(roles[role], key=usual_first)
    ]
    return next(iter(roles["train"]), None), tests, rest


def first_usable(
    candidates: Iterable[tuple[str, Callable[[], SourceSplit]]], classes: int
) -> tuple[SourceSplit | None, list[str]]:
    """The first split that can be measured on, and a line on each of the others.

    A test split that is not wanted must not stop anybody, so what is wrong with it is a line.

    Args:
        candidates: Name and opener of each, the preferred first.
        classes: Number of classes.
    """
    chosen: SourceSplit | None = None
    lines = []
    for name, open_split in candidates:
        if chosen is not None:
            lines.append(f"{name} is not used (the test split is {chosen.title})")
            continue
        try:
            split = open_split()
            check_labels(split, classes)
        except UsageError as error:
            lines.append(f"{name} is not used ({error})")
        else:
            chosen = split
    return chosen, lines


def check_labels(split: SourceSplit, classes: int) -> None:
    """Check that every label is one of the classes.

    Raises:
        UsageError: One is not, as where the labels of a test split are hidden (-1).
    """
    for row, label in enumerate(split.labels):
        if not 0 <= label < classes:
            raise UsageError(
                f"label {label} of {split.title} image {row} is outside the {classes} classes "
                f"0..{classes - 1}"
            )
