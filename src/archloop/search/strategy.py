"""What a search strategy is, and the one place that builds it.

A new strategy is a file with a class that fulfils :class:`Strategy`, its section in
:data:`archloop.config.SearchConfig`, and a line in :func:`build_strategy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from archloop.config import FeedbackSearch, PaperSearch, RandomSearch
from archloop.search.feedback import FeedbackStrategy
from archloop.search.paper import PaperStrategy
from archloop.search.random import RandomStrategy

if TYPE_CHECKING:
    from archloop.config import RunConfig
    from archloop.search.archive import Repeat
    from archloop.search.history import History
    from archloop.search.selection import CycleDecisions
    from archloop.types import Lesson, Request


class Strategy(Protocol):
    """What to ask for, what to accept and what to learn from.

    Every method is a pure function of the history before the cycle (``again`` and ``decide`` also
    see the candidates of the cycle itself): called again after an interruption it gives the same.
    """

    learns: bool
    """Whether there are ever lessons."""

    def ask(self, history: History, cycle: int, n: int) -> list[Request]:
        """The ``n`` requests of a cycle, in index order."""
        ...

    def again(self, history: History, cycle: int) -> list[Repeat]:
        """What of a cycle is to be trained again before it is decided; often nothing."""
        ...

    def decide(self, history: History, cycle: int) -> CycleDecisions:
        """A decision for every valid candidate of a cycle."""
        ...

    def lessons(self, history: History, cycle: int) -> list[Lesson] | None:
        """What the LLM learns before it writes in a cycle.

        Returns:
            Lessons; an empty list where there is nothing new; ``None`` where it does not learn.
        """
        ...


def build_strategy(config: RunConfig) -> Strategy:
    """The configured strategy."""
    match config.search:
        case PaperSearch():
            return PaperStrategy(config, config.search)
        case RandomSearch():
            return RandomStrategy(config, config.search)
        case FeedbackSearch():
            return FeedbackStrategy(config, config.search)
