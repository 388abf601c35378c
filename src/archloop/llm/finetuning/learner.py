"""What a learner is, and the one place that builds it.

A new learner (preferences, reinforcement) is a file with a class that fulfils :class:`Learner`, and
a line in :func:`build_learner`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from archloop.config import FinetuneConfig, RunConfig
from archloop.llm.finetuning import FinetuneJob, FinetuneProgress, FinetuneResult, finetune


@dataclass(frozen=True)
class LearningJob:
    """Lessons, and where the adapter they make belongs."""

    lessons: Path
    """Chat rows in JSONL (:meth:`archloop.types.Lesson.to_json`)."""
    parent: Path | None
    """The adapter to go on from; ``None``: from the base LLM."""
    out: Path
    """The adapter's folder; it appears when it is whole."""
    seed: int
    lineage: Mapping[str, Any]
    """Kept with the adapter."""


class Learner(Protocol):
    """Makes an adapter of lessons."""

    def learn(
        self, job: LearningJob, on_progress: Callable[[FinetuneProgress], None]
    ) -> FinetuneResult:
        """Learn; an interrupted job continues from its checkpoint when it is called again.

        Raises:
            DivergedError: The loss left the numbers, so there is no adapter.
            NothingToLearnError: No lesson is short enough.
        """
        ...


class SupervisedLearner:
    """LoRA fine-tuning on the answers of the lessons, from the base LLM or from the parent."""

    def __init__(self, config: FinetuneConfig, model_dir: Path, dtype: str) -> None:
        self._config, self._model_dir, self._dtype = config, model_dir, dtype

    def learn(
        self, job: LearningJob, on_progress: Callable[[FinetuneProgress], None]
    ) -> FinetuneResult:
        """See :meth:`Learner.learn`."""
        task = FinetuneJob(
            model_dir=self._model_dir,
            corpus=job.lessons,
            output=job.out,
            config=self._config,
            dtype=self._dtype,
            seed=job.seed,
            parent=job.parent,
            lineage=dict(job.lineage),
        )
        return finetune(task, on_progress)


def build_learner(config: RunConfig, model_dir: Path) -> Learner:
    """The configured learner."""
    return SupervisedLearner(config.finetune, model_dir, config.llm.dtype)
