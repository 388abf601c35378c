"""The paper's method: one prompt, novel and accurate networks accepted, the LLM fine-tuned on them.

Khalid, Ignatov, Timofte, 2026, sections 3 and 3.1. Beyond the paper, each off by default there: a
temperature that moves (``search.temperature_step``), a threshold that rises
(``selection.percentile``), limits of cost, and fine-tunes that go on from the last adapter
(``finetune.init = "previous"``).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from archloop.config.derived import derive_seed
from archloop.search import mix
from archloop.search.prompts import PromptTemplate
from archloop.search.selection import decide_cycle
from archloop.search.temperature import temperature_of
from archloop.types import Lesson, Origin, Request

if TYPE_CHECKING:
    from archloop.config import PaperSearch, RunConfig
    from archloop.search.history import History
    from archloop.search.selection import CycleDecisions

ADAPTER_REJECTED = "adapter_rejected"
"""Key of :attr:`archloop.types.CycleStats.decided`: why the cycle's fine-tune was not used."""


class PaperStrategy:
    """``search.type = "paper"``."""

    learns = True

    def __init__(self, config: RunConfig, search: PaperSearch) -> None:
        self._config, self._search = config, search
        self._template = PromptTemplate.from_config(config.prompt)

    def ask(self, history: History, cycle: int, n: int) -> list[Request]:
        """The same prompt ``n`` times, at the temperature of the cycle."""
        lowest = self._config.generation.temperature
        temperature = temperature_of(lowest, self._search, history.before(cycle))
        messages = tuple(self._template.render(history.subject, history.max_params))
        origin = Origin("design", prompt=self._template.digest)
        return [
            Request(
                cycle=cycle,
                index=index,
                seed=derive_seed(history.seed, "generate", cycle, index),
                task=history.task,
                messages=messages,
                temperature=temperature,
                origin=origin,
            )
            for index in range(n)
        ]

    def decide(self, history: History, cycle: int) -> CycleDecisions:
        """Accept what is novel, accurate and within the limits of cost."""
        return decide_cycle(
            history, cycle, novelty=self._config.novelty, selection=self._config.selection
        )

    def lessons(self, history: History, cycle: int) -> list[Lesson] | None:
        """The whole corpus, or with ``finetune.init = "previous"`` what is new and a sample."""
        finetune, weighting = self._config.finetune, self._config.selection.weighting
        if cycle > 1 and not finetune.enabled:
            return None
        rng = random.Random(derive_seed(history.seed, "replay", cycle))
        corpus = history.corpus(cycle)
        if cycle == 1 or finetune.init == "base":
            pairs = mix.whole_corpus(corpus, weighting, rng)
        else:
            pairs = mix.new_and_replayed(
                corpus,
                _not_learnt(history, cycle),
                replay=finetune.replay,
                replay_seeds=finetune.replay_seeds,
                weighting=weighting,
                rng=rng,
            )
        return [Lesson.of(pair) for pair in pairs]


def _not_learnt(history: History, cycle: int) -> set[int]:
    """The cycles whose accepted networks the last adapter has not seen.

    That is the one before, and further back where fine-tunes were rejected.
    """
    rejected = {s.cycle for s in history.before(cycle) if ADAPTER_REJECTED in s.decided}
    cycles = {cycle - 1}
    while (oldest := min(cycles)) > 1 and oldest in rejected:
        cycles.add(oldest - 1)
    return cycles
