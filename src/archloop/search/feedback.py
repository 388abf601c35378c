"""A frozen LLM with feedback: its prompt shows what became of its last networks.

nn-gpt's feedback-memory baseline (arXiv 2603.12091): the last K triples of network, outcome, and
accuracy or error. Departures: the triples are those of committed cycles, so that a cycle's requests
share one prompt and can be sampled together (``loop.completions = 1`` gives the original's order),
and each is shown with its code in place of a summary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from archloop.code.chat import render_code
from archloop.code.hygiene import is_suspect, suspect_text
from archloop.config.derived import derive_seed
from archloop.search.prompts import PromptTemplate
from archloop.search.selection import decide_cycle
from archloop.types import Message, Origin, Outcome, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from archloop.config import FeedbackSearch, RunConfig
    from archloop.search.archive import Repeat
    from archloop.search.history import History
    from archloop.search.selection import CycleDecisions
    from archloop.types import Candidate

_INTRODUCTION = "What became of your last networks, oldest first:"
_REQUEST = "Learn from these results and write a different network with a higher accuracy."
_IN_WORDS = {
    Outcome.ACCEPTED: "accepted",
    Outcome.BELOW_THRESHOLD: "not accurate enough, or too costly",
    Outcome.QUARANTINED: "not to be trusted",
    Outcome.NEAR_DUPLICATE: "too similar to a known network",
}


class FeedbackStrategy:
    """``search.type = "feedback"``."""

    learns = False

    def __init__(self, config: RunConfig, search: FeedbackSearch) -> None:
        self._config, self._search = config, search
        self._template = PromptTemplate.from_config(config.prompt)
        self._shows_all = "suspect_text" in config.selection.allow_flags

    def ask(self, history: History, cycle: int, n: int) -> list[Request]:
        """The run's prompt with the last networks of earlier cycles behind it, ``n`` times."""
        shown = self._remembered(history, cycle)
        system, user = self._template.render(history.subject, history.max_params)
        if shown:
            parts = [user["content"], _INTRODUCTION, *map(_result, shown), _REQUEST]
            user = Message(role="user", content="\n\n".join(parts))
        origin = Origin("feedback", self._template.digest, tuple(c.id for c in shown))
        return [
            Request(
                cycle=cycle,
                index=index,
                seed=derive_seed(history.seed, "generate", cycle, index),
                task=history.task,
                messages=(system, user),
                temperature=self._config.generation.temperature,
                origin=origin,
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
        """Nothing is learnt: the LLM is frozen."""
        return

    def _remembered(self, history: History, cycle: int) -> Sequence[Candidate]:
        """The last networks without suspect text, as many as fit into the memory, oldest first."""
        shown: list[Candidate] = []
        left = self._search.memory_characters
        for candidate in reversed(history.last(cycle, self._search.memory)):
            code = candidate.code or ""
            if not self._shows_all and suspect_text(code, prose=False):
                continue
            left -= len(code)
            if left < 0:
                break
            shown.insert(0, candidate)
        return shown


def _result(candidate: Candidate) -> str:
    """One triple: the network, its outcome, its accuracy or its error."""
    said = _IN_WORDS.get(candidate.outcome, candidate.outcome.value)
    if candidate.first_epoch_accuracy is not None:
        said += f", first-epoch accuracy {candidate.first_epoch_accuracy:.2%}"
    if candidate.error and not is_suspect(candidate.error):
        said += f": {candidate.error}"
    return f"{render_code(candidate.code or '')}\nResult: {said}."
