"""What a seed source gives, whatever it reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class SeedNetwork:
    """One network as found."""

    name: str
    family: str
    """LEMUR's name prefix, or the folder it came from."""
    code: str
    accuracy: float | None
    """Best recorded first-epoch accuracy, where the source knows one."""


class SeedSource(Protocol):
    """A place seeds come from."""

    @property
    def digest(self) -> str:
        """What identifies the content, for caching."""
        ...

    def networks(self) -> Iterator[SeedNetwork]:
        """Every network, in a fixed order."""
        ...
