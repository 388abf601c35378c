"""Repeat the stored completions of an earlier run: nothing is sampled, no LLM is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from archloop.errors import UsageError
from archloop.llm.generation.generator import FinishReason, GeneratedText
from archloop.types import Message


class ReplayGenerator:
    """Answers each request with the completion stored under its index."""

    def __init__(self, stored: Mapping[int, tuple[str, int, FinishReason]]) -> None:
        self._stored = stored

    def generate(
        self,
        messages: Sequence[Message],  # noqa: ARG002 - of the protocol
        requests: Sequence[tuple[int, int]],
    ) -> Iterator[GeneratedText]:
        """The stored completions in the order of the requests; the prompt plays no part.

        Raises:
            UsageError: An index has no stored completion; raised before anything is yielded.
        """
        missing = [index for index, _ in requests if index not in self._stored]
        if missing:
            raise UsageError(
                f"generation.replay_from: no completion {missing[0]} stored for this cycle "
                f"({len(missing)} of {len(requests)} requested are missing)"
            )
        for index, seed in requests:
            text, n_tokens, finish_reason = self._stored[index]
            yield GeneratedText(index, seed, text, n_tokens, finish_reason)

    def close(self) -> None:
        """Nothing is held."""
