"""What a generation engine is, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from archloop.types import FinishReason, Message

__all__ = ["FinishReason", "GeneratedText", "Generator"]


@dataclass(frozen=True)
class GeneratedText:
    """One sampled answer; the caller gives it its cycle."""

    index: int
    seed: int
    text: str
    """Without special tokens."""
    n_tokens: int
    """Tokens sampled, the end token included."""
    finish_reason: FinishReason


class Generator(Protocol):
    """An LLM with its adapter and its decoding settings, ready to answer one fixed chat prompt."""

    def generate(
        self, messages: Sequence[Message], requests: Sequence[tuple[int, int]]
    ) -> Iterator[GeneratedText]:
        """Sample one answer per request, each yielded as soon as it is complete.

        The same messages and requests give the same texts on the same machine, where the engine's
        module does not say otherwise. Closing the iterator early drops what is unfinished.

        Args:
            messages: The chat prompt, ending with the user's message.
            requests: (index, seed) pairs; a seed decides its answer's random draws alone.
        """
        ...

    def close(self) -> None:
        """Give the memory back; the generator cannot be used afterwards."""
        ...
