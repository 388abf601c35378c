"""LoRA fine-tuning of the LLM on a corpus of prompt-code pairs.

The work runs in a separate process (:func:`finetune`), so that all its memory is released when it
ends; :mod:`archloop.llm.finetuning.process` runs there. The job and the result are plain JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from archloop.errors import DivergedError, NothingToLearnError
from archloop.llm.finetuning.job import FinetuneJob, FinetuneProgress, FinetuneResult
from archloop.worker import run_worker

logger = logging.getLogger(__name__)

__all__ = ["FinetuneJob", "FinetuneProgress", "FinetuneResult", "finetune"]


def finetune(
    job: FinetuneJob, on_progress: Callable[[FinetuneProgress], None] | None = None
) -> FinetuneResult:
    """Fine-tune in a fresh process and wait for it; an interrupted job resumes from its checkpoint.

    Args:
        job: What to train on and where the adapter goes; ``job.output`` appears only when it is
            complete.
        on_progress: Called at the start, and after every optimiser step.

    Raises:
        DivergedError: The loss is not finite or well above its start; there is no adapter.
        NothingToLearnError: All pairs are too long, or in the dev split.
        ArchloopError: The process failed; the message is its last error line.
    """
    result: dict[str, Any] | None = None
    for event in run_worker("archloop.llm.finetuning.process", job.to_json()):
        if event["event"] in ("begin", "step") and on_progress:
            on_progress(FinetuneProgress(**event["data"]))
        if event["event"] == "note":
            logger.info("fine-tune: %s", event["data"]["text"])
        if event["event"] == "result":
            result = event["data"]
    assert result is not None  # run_worker raises when the process ends without one
    if "diverged" in result:
        raise DivergedError(f"the fine-tune diverged: {result['diverged']}")
    if "nothing_to_learn" in result:
        raise NothingToLearnError(result["nothing_to_learn"])
    return FinetuneResult(**{**result, "adapter": Path(result["adapter"])})
