"""What a strategy may know of a run: its committed cycles, and the cycle it decides over.

A strategy is a pure function of this, so that a resumed run finds the same requests, decisions and
lessons as an unbroken one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from archloop.search.prompts import PromptSubject
from archloop.search.selection import next_count
from archloop.types import Candidate, ChatPair, CycleStats, GraphSketch, Outcome


class Record(Protocol):
    """What a history is read from: the store of a run, or decisions made again in memory."""

    def cycles(self) -> list[CycleStats]:
        """The statistics of the committed cycles, in order."""
        ...

    def candidates(self, cycle: int | None = None) -> list[Candidate]:
        """The completions with a verdict, of one cycle or of all, in (cycle, index) order."""
        ...


@dataclass(frozen=True)
class Known:
    """A network that candidates are compared with."""

    id: str
    code: str
    graph: GraphSketch | None


@dataclass(frozen=True)
class History:
    """The committed history of a run, with its seed, its task and its seed networks."""

    record: Record
    seed: int
    """Of the run."""
    task: str
    """Name of the task."""
    subject: PromptSubject
    """What a prompt says about the task."""
    max_params: int
    """Parameter budget of a network."""
    seed_networks: Callable[[], Sequence[Known]]
    """The networks that the run started from, traced; read on first use."""
    corpus: Callable[[int], Sequence[ChatPair]]
    """The corpus that a cycle starts from: the seed networks and what earlier cycles accepted."""

    def before(self, cycle: int) -> list[CycleStats]:
        """The statistics of the cycles before one, oldest first."""
        return [stats for stats in self.record.cycles() if stats.cycle < cycle]

    def valid(self, cycle: int) -> list[Candidate]:
        """The valid candidates of a cycle, in index order."""
        return [c for c in self.record.candidates(cycle) if c.outcome.is_valid]

    def accepted_before(self, cycle: int) -> list[Candidate]:
        """What the cycles before one accepted, in (cycle, index) order."""
        return [c for c in self._earlier(cycle) if c.outcome is Outcome.ACCEPTED]

    def last(self, cycle: int, n: int) -> list[Candidate]:
        """The last ``n`` candidates with code of the cycles before one, oldest first."""
        return [c for c in self._earlier(cycle) if c.code is not None][-n:]

    def rejections_before(self, cycle: int) -> int:
        """Near-duplicates rejected in the cycles before one since the last accepted candidate."""
        for candidate in reversed(self._earlier(cycle)):
            if candidate.rejection_count is not None:
                return next_count(candidate.rejection_count, candidate.outcome)
        return 0

    def _earlier(self, cycle: int) -> list[Candidate]:
        rows = self.record.candidates()
        return [row for row in rows if row.cycle is not None and row.cycle < cycle]
