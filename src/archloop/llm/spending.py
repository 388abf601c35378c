"""What a run has used of a paid server, and the caps that stop it in time.

A request is sent only if its longest possible answer still fits under the caps, together with those
of all requests under way. What has no answer, because it timed out or its connection broke, may be
billed all the same and is charged as its longest answer. Not counted: what found no connection to
be sent on, and what was under way when the process was killed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from archloop.config.engines import OpenAIConfig
from archloop.types import Message

_MESSAGE_TOKENS = 64
"""Room for what a chat template puts around a message."""


@dataclass(frozen=True)
class Spent:
    """What all answers of a run took together."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """In the currency of the prices; 0 without them."""
    unanswered: int = 0
    """Requests without an answer, charged as their longest one."""

    @property
    def tokens(self) -> int:
        """Prompt and sampled tokens."""
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Spent:
        """Read back what :meth:`to_json` gave; nothing is nothing spent."""
        return cls(**data) if data else cls()

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return asdict(self)


class Budget:
    """Keeps a run below its caps on tokens and money."""

    def __init__(self, config: OpenAIConfig, spent: Spent) -> None:
        self._config = config
        self.spent = spent
        self._open = 0
        self._longest = (0, 0)
        self._one_prompt = True

    def expect(self, prompts: Sequence[Sequence[Message]], max_new_tokens: int) -> None:
        """The prompts of the coming requests: a token is at least a byte of the longest."""
        sizes = [
            sum(len(m["content"].encode()) + _MESSAGE_TOKENS for m in messages)
            for messages in prompts
        ]
        self._longest = (max(sizes, default=0), max_new_tokens)
        self._one_prompt = all(messages == prompts[0] for messages in prompts)

    def admits(self) -> bool:
        """Whether one more request fits under the caps, whatever is answered."""
        tokens, cost = self._if_all_are_longest(self._open + 1)
        config = self._config
        return (config.cap_tokens is None or tokens <= config.cap_tokens) and (
            config.cap_cost is None or cost <= config.cap_cost
        )

    def open(self) -> None:
        """A request is about to be sent."""
        self._open += 1

    def close(self) -> None:
        """A request is over; what it took has been charged."""
        self._open -= 1

    def charge(self, prompt_tokens: int, completion_tokens: int) -> None:
        """An answer, with what the server counted; one prompt's length is known from now on."""
        self._add(prompt_tokens, completion_tokens, answers=1)
        if self._one_prompt:
            self._longest = (max(prompt_tokens, 1), self._longest[1])

    def charge_unanswered(self) -> None:
        """A request that may be billed although nothing came back."""
        self._add(*self._longest, unanswered=1)

    def _add(self, prompt: int, completion: int, *, answers: int = 0, unanswered: int = 0) -> None:
        old = self.spent
        self.spent = replace(
            old,
            answers=old.answers + answers,
            prompt_tokens=old.prompt_tokens + prompt,
            completion_tokens=old.completion_tokens + completion,
            cost=old.cost + self._cost(prompt, completion),
            unanswered=old.unanswered + unanswered,
        )

    def _cost(self, prompt: int, completion: int) -> float:
        config = self._config
        return (
            prompt * (config.input_price or 0.0) + completion * (config.output_price or 0.0)
        ) / 1e6

    def _if_all_are_longest(self, requests: int) -> tuple[int, float]:
        tokens, cost = sum(self._longest), self._cost(*self._longest)
        return self.spent.tokens + requests * tokens, self.spent.cost + requests * cost

    def stop_line(self) -> str:
        """Why nothing more is asked, and what to do."""
        config, spent = self._config, self.spent
        tokens, cost = self._if_all_are_longest(1)
        if config.cap_cost is not None and cost > config.cap_cost:
            key, cap = "openai.cap_cost", f"{config.cap_cost:g}"
            used, more = f"{spent.cost:.4g}", f"{cost - spent.cost:.4g}"
        else:
            key, cap = "openai.cap_tokens", f"{config.cap_tokens:,}"
            used, more = f"{spent.tokens:,}", f"{tokens - spent.tokens:,}"
        return (
            f"{key}: {used} of {cap} is used and one more answer may take {more}; everything "
            f"answered is kept, and the same command with a higher {key} goes on"
        )
