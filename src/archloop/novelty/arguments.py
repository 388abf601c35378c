"""How rules read the arguments of a traced operator, which may be anything that JSON can hold."""

from __future__ import annotations

from typing import Any

from archloop.novelty.canonical import Input


def has_input(value: Any) -> bool:
    """Whether a tensor is in it, at any depth."""
    return isinstance(value, Input) or (isinstance(value, list) and any(map(has_input, value)))


def as_ints(value: Any) -> list[int] | None:
    """Whole numbers of moderate size, as a list."""
    values = value if isinstance(value, list) else [value]
    if all(type(v) is int and abs(v) < 2**40 for v in values):
        return list(values)
    return None


def as_sizes(value: Any, count: int) -> list[int] | None:
    """One number for each dimension."""
    sizes = as_ints(value)
    if sizes is not None and len(sizes) == 1:
        sizes = sizes * count
    return sizes if sizes is not None and len(sizes) == count else None


def as_index(value: Any, size: int) -> int | None:
    """A position, counted from the start."""
    if type(value) is not int or not -size <= value < size:
        return None
    return value % size
