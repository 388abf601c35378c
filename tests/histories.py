"""Histories of runs without a database, for tests of strategies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from archloop.search.history import History, Known
from archloop.search.prompts import PromptSubject
from archloop.types import Candidate, ChatPair, CycleStats, Outcome

SUBJECT = PromptSubject("CIFAR-10", (3, 32, 32), 10)


@dataclass
class Memory:
    """A record without a database."""

    rows: list[Candidate] = field(default_factory=list)
    stats: list[CycleStats] = field(default_factory=list)

    def cycles(self) -> list[CycleStats]:
        return self.stats

    def candidates(self, cycle: int | None = None) -> list[Candidate]:
        return [row for row in self.rows if cycle is None or row.cycle == cycle]


def code(word: str) -> str:
    """Code that shares no shingle with that of another word."""
    return "\n".join(f"{word}{i} = layer({word}, {i}, width={i * 8})" for i in range(20))


def row(cycle: int, index: int, word: str, outcome: Outcome, **rest: Any) -> Candidate:
    rest.setdefault("first_epoch_accuracy", 0.5 if outcome.is_valid else None)
    return Candidate(f"c{cycle:02d}-{index:04d}", cycle, index, outcome, code=code(word), **rest)


def stats(cycle: int, *, valid: int = 10, near: int = 0, **rest: Any) -> CycleStats:
    return CycleStats(
        cycle=cycle,
        n_gen=10,
        n_valid=valid,
        n_at_floor=valid,
        n_near_duplicate=near,
        n_accepted=valid - near,
        accuracies=(0.5,) * valid,
        corpus_size=1,
        adapter="cycle_01",
        corpus_sha256="",
        outcomes={},
        **rest,
    )


def history(record: Memory, corpus: Sequence[ChatPair] = (), seeds: Sequence[str] = ()) -> History:
    return History(
        record=record,
        seed=7,
        task="cifar10",
        subject=SUBJECT,
        max_params=500_000,
        seed_networks=lambda: [Known(f"seed:{word}", code(word), None) for word in seeds],
        corpus=lambda cycle: [p for p in corpus if p.meta.get("cycle", 0) < cycle],
    )
