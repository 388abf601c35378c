"""Repeat the stored completions of an earlier run: nothing is sampled, no LLM is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from archloop.errors import UsageError
from archloop.llm.generation.generator import EngineSetup
from archloop.store.run_dir import RunDir
from archloop.store.store import Store
from archloop.types import Completion, Request


class ReplayGenerator:
    """Answers each request with the completion stored under its cycle and index."""

    def __init__(self, setup: EngineSetup) -> None:
        """Find the run.

        Raises:
            UsageError: ``generation.replay_from`` names none.
        """
        self.traits = setup.traits
        source = setup.config.generation.replay_from
        database = RunDir(Path(source or "")).database
        if source is None or not database.is_file():
            raise UsageError(f"generation.replay_from: no run in {Path(source or '').absolute()}")
        self._database = database

    def use(self, adapter: Path | None) -> None:
        """What is stored was sampled with adapters of its own."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """The stored completions in the order of the requests; prompts play no part.

        Raises:
            UsageError: A request has no stored completion; raised before anything is yielded.
        """
        with Store(self._database, read_only=True) as store:
            stored = {
                (completion.cycle, completion.index): completion
                for cycle in {request.cycle for request in requests}
                for completion in store.completions(cycle)
            }
        missing = [r for r in requests if (r.cycle, r.index) not in stored]
        if missing:
            raise UsageError(
                f"generation.replay_from: no completion {missing[0].index} stored for this cycle "
                f"({len(missing)} of {len(requests)} requested are missing)"
            )
        for request in requests:
            yield stored[request.cycle, request.index]

    def close(self) -> None:
        """Nothing is held."""
