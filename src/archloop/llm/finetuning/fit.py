"""Choose gradient checkpointing and the number of merged batches for the free memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from archloop.llm.finetuning.job import FinetuneJob
from archloop.machine.footprint import LLMShape, finetune_bytes
from archloop.machine.hardware import free_memory

_GIB = 2**30
_LIBRARIES_GIB = 1.0
"""Memory of torch and other libraries, in addition to the LLM."""
_MERGE_SHARE = 0.8
"""Share of the free memory that merged batches may take by the estimate; they only save time."""


@dataclass(frozen=True)
class Fit:
    """Settings that change a step's memory and time, but not its result."""

    recompute: bool
    """Recompute activations in the backward pass (gradient checkpointing)."""
    merged: int
    """Batches of a step that share a forward pass; divides ``finetune.grad_accumulation``."""
    notes: tuple[str, ...]
    """The reason for the choice, as a message."""


def free_bytes() -> int:
    """Free bytes on the device that the LLM is trained on: the GPU, or the machine."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return free_memory()


def fit(job: FinetuneJob, model_config: Any, longest: int, free: int, *, one_gpu: bool) -> Fit:
    """Decide on gradient checkpointing and on how many batches of a step are merged.

    Args:
        job: The fine-tune.
        model_config: Of the LLM.
        longest: Tokens of the longest pair.
        free: Bytes of memory, before the LLM is loaded.
        one_gpu: Whether this is the only process, and has a GPU.
    """
    shape = LLMShape.from_config(model_config.to_dict())
    recompute, why = _recompute(job, shape, longest, free)
    merged, about = _merged(job, shape, longest, free, recompute=recompute, one_gpu=one_gpu)
    return Fit(recompute, merged, tuple(note for note in (why, about) if note))


def _recompute(
    job: FinetuneJob, shape: LLMShape | None, longest: int, free: int
) -> tuple[bool, str]:
    wanted = job.config.gradient_checkpointing
    if wanted != "auto":
        return bool(wanted), f"gradient checkpointing {_on(bool(wanted))} as configured"
    if shape is None:
        cuda = torch.cuda.is_available()
        return cuda, f"gradient checkpointing {_on(cuda)}: the LLM's size is unknown"
    merged = job.config.grad_accumulation if job.config.merge_batches is True else 1
    need = _need(job, shape, longest, merged)
    recompute = need > free
    return recompute, f"gradient checkpointing {_on(recompute)}: without it {_gib(need, free)}"


def _merged(
    job: FinetuneJob,
    shape: LLMShape | None,
    longest: int,
    free: int,
    *,
    recompute: bool,
    one_gpu: bool,
) -> tuple[int, str]:
    batches, wanted = job.config.grad_accumulation, job.config.merge_batches
    if wanted is True:
        return batches, f"{batches} batches of a step go together as configured"
    if wanted is False or not one_gpu or shape is None:
        return 1, ""
    for together in range(batches, 1, -1):
        need = _need(job, shape, longest, together, recompute=recompute)
        if not batches % together and need <= _MERGE_SHARE * free:
            return together, f"{together} batches of a step go together: {_gib(need, free)}"
    return 1, ""


def _need(
    job: FinetuneJob, shape: LLMShape, longest: int, merged: int = 1, *, recompute: bool = False
) -> float:
    size = {"max_length": longest, "batch_size": job.config.batch_size * merged}
    config = job.config.model_copy(update=size)
    return finetune_bytes(shape, config, job.dtype, checkpointing=recompute) + _LIBRARIES_GIB * _GIB


def _on(recompute: bool) -> str:  # noqa: FBT001
    return "on" if recompute else "off"


def _gib(need: float, free: int) -> str:
    return f"about {need / _GIB:.1f} GiB are needed, {free / _GIB:.1f} GiB are free"
