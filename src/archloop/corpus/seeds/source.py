"""The Protocol of sources of seed networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class SeedNetwork:
    """A network as the source has it."""

    name: str
    family: str
    """LEMUR's name prefix, or the folder it came from."""
    code: str
    accuracy: float | None
    """Best recorded first-epoch accuracy, where the source knows one."""
    fault: str | None = None
    """Why there is no code to use: its encoding, an answer without a code block."""
    flags: tuple[str, ...] = ()
    """Of its evaluation, where the source knows them."""


class SeedSource(Protocol):
    """Where seed networks come from."""

    @property
    def digest(self) -> str:
        """Identifies the content, for caching."""
        ...

    def networks(self) -> Iterator[SeedNetwork]:
        """Every network, in a fixed order."""
        ...
