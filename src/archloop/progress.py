"""What a run tells whoever watches: the stage, how far it is, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from archloop.types import CycleStats


@dataclass(frozen=True)
class RunProgress:
    """Where the run stands as a whole."""

    cycle: int
    """The one under way; one more than ``cycles`` in the final fine-tune."""
    cycles: int
    elapsed: float
    """Seconds since this process began with the run."""
    eta: float | None = None
    """Seconds left; ``None``: nothing to judge by yet."""
    eta_is_whole: bool = False
    """Whether ``eta`` holds all stages to come; else some have never been measured."""
    best: float | None = None
    """The best first-epoch accuracy of all valid candidates so far."""
    n_accepted: int = 0
    corpus_size: int | None = None
    finished: tuple[CycleStats, ...] = ()
    """The committed cycles."""


@dataclass(frozen=True)
class Progress:
    """A snapshot of the stage under way."""

    stage: str
    """``seeds``, ``fine-tune``, ``candidates``, ``select`` ..."""
    done: int = 0
    total: int | None = None
    unit: str = ""
    n_valid: int | None = None
    best: float | None = None
    """The best first-epoch accuracy of the stage's candidates."""
    n_tokens: int | None = None
    """Sampled so far, in unfinished completions too."""
    tokens_per_second: float | None = None
    detail: str = ""
    share: float | None = None
    """The part of the work that is done, where it is known better than by ``done / total``."""
    elapsed: float | None = None
    """Seconds since the stage began; ``None``: whoever shows it keeps the time."""
    eta: float | None = None
    """Seconds left; ``None``, where ``elapsed`` is known: nothing to judge by yet."""
    eta_is_whole: bool = True
    """Whether ``eta`` holds all of the stage's work; else part of it has never been measured."""
    run: RunProgress | None = None
    """``None``: no run, or not told by one."""


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
