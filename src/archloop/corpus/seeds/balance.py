"""Seeds chosen by what they are built of: within a limit of cost, and evenly over classes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def even(items: Sequence[T], class_of: Callable[[T], Hashable], most: int | None = None) -> list[T]:
    """Items taken from each class in turn, the first of each first; in their old order.

    Args:
        items: The best of a class before its others.
        class_of: The class of an item.
        most: So many in all; ``None``: of each class at most the mean number of items of a class,
            rounded up.
    """
    waiting: dict[Hashable, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        waiting[class_of(item)].append(place)
    if not waiting:
        return []
    share = -(-len(items) // len(waiting))
    if most is None:
        return [items[i] for i in sorted(i for rows in waiting.values() for i in rows[:share])]
    taken: list[int] = []
    turn = 0
    while len(taken) < min(most, len(items)):
        for rows in waiting.values():
            if turn < len(rows) and len(taken) < most:
                taken.append(rows[turn])
        turn += 1
    return [items[i] for i in sorted(taken)]


def counted(items: Iterable[T], class_of: Callable[[T], str | None]) -> Counter[str]:
    """Items of each class."""
    return Counter(found for item in items if (found := class_of(item)) is not None)
