"""What a generation engine is, and what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from archloop.config.engines import EngineTraits
from archloop.errors import ArchloopError
from archloop.types import Completion, FinishReason, Request

if TYPE_CHECKING:
    from archloop.config import RunConfig
    from archloop.llm.spending import Budget
    from archloop.search.prompts import PromptSubject

__all__ = ["EngineSetup", "FinishReason", "Generator"]


def nobody(_n_tokens: int) -> None:
    """Nobody is told how far unfinished completions are."""


@dataclass(frozen=True)
class EngineSetup:
    """Everything that an engine may need; each takes what it knows."""

    config: RunConfig
    traits: EngineTraits
    """Of the engine that is built."""
    dtype: str
    """Type that the LLM is computed in here, ``bfloat16`` or ``float32``."""
    model_dir: Path | None = None
    """The base LLM in Hugging Face layout: ``config.json``, safetensors, tokenizer with a chat
    template; ``None``: the engine loads none."""
    subject: PromptSubject | None = None
    """The task that networks are for; ``None``: the prompts say it."""
    budget: Budget | None = None
    """What may be spent; ``None``: the engine costs nothing."""
    tell: Callable[[int], None] = nobody
    """Called with the number of tokens sampled since the last call, by engines that see them before
    a completion is finished."""

    def llm_folder(self) -> Path:
        """The folder of the LLM, which this engine cannot do without."""
        if self.model_dir is None:
            raise ArchloopError(f"generation.engine = {self.config.engine!r}: no LLM was given")
        return self.model_dir


class Generator(Protocol):
    """An engine in the process that samples: the LLM with an adapter, or what takes its place."""

    @property
    def traits(self) -> EngineTraits:
        """As registered in :data:`archloop.config.engines.ENGINES`."""
        ...

    def use(self, adapter: Path | None) -> None:
        """Sample with this adapter from now on, or with none; called before the first request.

        Args:
            adapter: A PEFT adapter folder; engines that take none pass over it.

        Raises:
            UsageError: The adapter does not fit the LLM or has no effect on it.
        """
        ...

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Answer every request once, each answer yielded as soon as it is complete.

        Requests may differ in prompt and temperature. The same requests give the same texts on the
        same machine, where the engine's module does not say otherwise. Closing the iterator early
        drops what is unfinished.

        Args:
            requests: What is sampled together; a seed decides its answer's random draws alone.
        """
        ...

    def close(self) -> None:
        """Give the memory back; the generator cannot be used afterwards."""
        ...
