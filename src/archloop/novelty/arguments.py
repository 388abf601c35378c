"""Reads the arguments of traced operators for the rules; they may be any JSON value."""

from __future__ import annotations

from typing import Any

from archloop.novelty.canonical import Input


def has_input(value: Any) -> bool:
    """Whether a value contains a tensor, at any depth."""
    return isinstance(value, Input) or (isinstance(value, list) and any(map(has_input, value)))


def as_ints(value: Any) -> list[int] | None:
    """A list of integers of moderate size, or ``None``."""
    values = value if isinstance(value, list) else [value]
    if all(type(v) is int and abs(v) < 2**40 for v in values):
        return list(values)
    return None


def as_sizes(value: Any, count: int) -> list[int] | None:
    """One integer for each dimension, from a number or a list."""
    sizes = as_ints(value)
    if sizes is not None and len(sizes) == 1:
        sizes = sizes * count
    return sizes if sizes is not None and len(sizes) == count else None


def as_index(value: Any, size: int) -> int | None:
    """An index or dimension as a non-negative number."""
    if type(value) is not int or not -size <= value < size:
        return None
    return value % size
