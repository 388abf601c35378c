"""The random baseline: networks from a grammar, and random edits of accepted ones; no LLM.

A method that learns has to be better than this at equal cost (Li and Talwalkar, 2020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from archloop.config.derived import derive_seed
from archloop.search.moves import Prompt, with_edits
from archloop.search.prompts import PromptTemplate
from archloop.search.selection import decide_cycle
from archloop.types import Origin, Request

if TYPE_CHECKING:
    from archloop.config import RandomSearch, RunConfig
    from archloop.search.archive import Repeat
    from archloop.search.history import History
    from archloop.search.selection import CycleDecisions


class RandomStrategy:
    """``search.type = "random"``; :mod:`archloop.llm.generation.grammar_engine` writes networks."""

    learns = False

    def __init__(self, config: RunConfig, search: RandomSearch) -> None:
        self._config, self._search = config, search
        self._template = PromptTemplate.from_config(config.prompt)

    def ask(self, history: History, cycle: int, n: int) -> list[Request]:
        """``n`` requests that differ in their seed, which decides the network, and in the edit."""
        designs: list[Prompt] = [((), Origin("grammar"))] * n
        asked = with_edits(designs, self._search.edits, self._template, history, cycle)
        return [
            Request(
                cycle=cycle,
                index=index,
                seed=derive_seed(history.seed, "generate", cycle, index),
                task=history.task,
                messages=messages,
                temperature=0.0,
                origin=origin,
            )
            for index, (messages, origin) in enumerate(asked)
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
