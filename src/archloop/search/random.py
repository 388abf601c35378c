"""The random baseline: networks from a grammar, uniformly and within the budget; no LLM.

A method that learns has to be better than this at equal cost (Li and Talwalkar, 2020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from archloop.config.derived import derive_seed
from archloop.search.selection import decide_cycle
from archloop.types import Origin, Request

if TYPE_CHECKING:
    from archloop.config import RunConfig
    from archloop.search.archive import Repeat
    from archloop.search.history import History
    from archloop.search.selection import CycleDecisions

_ORIGIN = Origin("grammar")


class RandomStrategy:
    """``search.type = "random"``; :mod:`archloop.search.grammar` writes the networks."""

    learns = False

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def ask(self, history: History, cycle: int, n: int) -> list[Request]:
        """``n`` requests that differ in their seed, which decides the network alone."""
        return [
            Request(
                cycle=cycle,
                index=index,
                seed=derive_seed(history.seed, "generate", cycle, index),
                task=history.task,
                messages=(),
                temperature=0.0,
                origin=_ORIGIN,
            )
            for index in range(n)
        ]

    def again(self, history: History, cycle: int) -> list[Repeat]:  # noqa: ARG002 - of the protocol
        """Nothing: one training decides."""
        return []

    def decide(self, history: History, cycle: int) -> CycleDecisions:
        """Accept what is novel, accurate and within the limits of cost."""
        return decide_cycle(
            history, cycle, novelty=self._config.novelty, selection=self._config.selection
        )

    def lessons(self, history: History, cycle: int) -> None:  # noqa: ARG002 - of the protocol
        """Nothing is learnt."""
        return
