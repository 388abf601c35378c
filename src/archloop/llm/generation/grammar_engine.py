"""Networks of a grammar, and edited ones, in place of an LLM's answers: nothing is loaded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from archloop.code.chat import render_code
from archloop.config import RandomSearch
from archloop.errors import ArchloopError
from archloop.llm.generation.generator import EngineSetup
from archloop.search.designs import design
from archloop.search.grammar import write_network
from archloop.search.moves import move
from archloop.types import Completion, Request


class GrammarGenerator:
    """Answers each request with the network that its seed decides."""

    def __init__(self, setup: EngineSetup) -> None:
        """Keep the task and the budget."""
        self.traits = setup.traits
        if setup.subject is None:
            raise ArchloopError("the grammar was given no task to write networks for")
        self._subject = setup.subject
        self._max_params = setup.config.task.max_params
        search = setup.config.search
        self._designs = isinstance(search, RandomSearch) and search.grammar == "designs"

    def use(self, adapter: Path | None) -> None:
        """There is no LLM that an adapter would change."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """The networks in the order of the requests; of prompts only the network to edit counts."""
        for request in requests:
            code = move(request) or self._network(request.seed)
            yield Completion(request.cycle, request.index, render_code(code), 0, "stop")

    def _network(self, seed: int) -> str:
        if self._designs:
            return design(random.Random(seed))[0]
        return write_network(
            seed,
            shape=self._subject.shape,
            classes=self._subject.classes,
            max_params=self._max_params,
        )

    def close(self) -> None:
        """Nothing is held."""
