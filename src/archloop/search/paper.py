"""The paper's method: one prompt, novel and accurate networks accepted, the LLM fine-tuned on them.

Khalid, Ignatov, Timofte, 2026, sections 3 and 3.1. Beyond the paper, each off by default there: a
temperature that moves (``search.temperature_step``), a threshold that rises
(``selection.percentile``), limits of cost, prompts that ask for a structure (``search.condition``),
and fine-tunes that go on from the last adapter (``finetune.init = "previous"``).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from archloop.config.derived import derive_seed
from archloop.search import mix
from archloop.search.archive import Archive, Repeat, spread, would_be_champions
from archloop.search.moves import Prompt, with_edits
from archloop.search.prompts import PromptTemplate
from archloop.search.selection import decide_cycle
from archloop.search.targets import targets
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
        """The same prompt ``n`` times, or each with its target, at the cycle's temperature."""
        lowest = self._config.generation.temperature
        temperature = temperature_of(lowest, self._search, history.before(cycle))
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
            for index, (messages, origin) in enumerate(self._prompts(history, cycle, n))
        ]

    def _prompts(self, history: History, cycle: int, n: int) -> list[Prompt]:
        """The messages of each request, and what they ask for."""
        designs = self._designs(history, cycle, n)
        return with_edits(designs, self._search.edits, self._template, history, cycle)

    def _designs(self, history: History, cycle: int, n: int) -> list[Prompt]:
        """The prompts for new networks."""
        template, subject, digest = self._template, history.subject, self._template.digest
        if self._search.condition == "none":
            messages = tuple(template.render(subject, history.max_params))
            return [(messages, Origin("design", prompt=digest))] * n
        return [
            (
                tuple(template.render(subject, target.max_params, target.structure)),
                Origin(
                    "design",
                    prompt=digest,
                    structure=target.structure,
                    max_params=target.max_params,
                ),
            )
            for target in targets(history, cycle, n, self._search.condition)
        ]

    def decide(self, history: History, cycle: int) -> CycleDecisions:
        """Accept what is novel, accurate and within the limits of cost, of all or by niche."""
        return decide_cycle(
            history,
            cycle,
            novelty=self._config.novelty,
            selection=self._config.selection,
            niche_size=self._search.niche_size if self._search.select == "niche" else None,
        )

    def again(self, history: History, cycle: int) -> list[Repeat]:
        """Would-be champions, to be trained again with other seeds before anything is decided."""
        search = self._search
        if search.select != "niche" or not search.champion_repeats:
            return []
        noise = spread(c for s in history.before(cycle) for c in history.valid(s.cycle))
        champions = Archive.of(history.accepted_before(cycle), noise)
        least = self._config.selection.min_accuracy
        return [
            Repeat(candidate, number, derive_seed(history.seed, "again", candidate.id, number))
            for candidate in would_be_champions(history.valid(cycle), champions, least)
            for number in range(1, search.champion_repeats + 1)
        ]

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
