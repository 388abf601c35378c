"""What a run tells whoever watches: the stage, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """A snapshot of the stage under way."""

    stage: str
    """``seeds``, ``fine-tune``, ``candidates``, ``select`` ..."""
    cycle: int | None = None
    cycles: int | None = None
    done: int = 0
    total: int | None = None
    unit: str = ""
    n_valid: int | None = None
    n_accepted: int | None = None
    tokens_per_second: float | None = None
    detail: str = ""


class Observer(Protocol):
    """Receives snapshots; must be quick and must not raise."""

    def update(self, progress: Progress) -> None:
        """A new snapshot replaces the one before."""
        ...

    def message(self, text: str) -> None:
        """One line worth keeping."""
        ...


class Silent:
    """Watches nothing."""

    def update(self, progress: Progress) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""
