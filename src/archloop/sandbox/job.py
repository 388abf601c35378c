"""What a candidate's process, and the one that feeds it, are sent before they begin."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from archloop.types import LRSchedule, Training

Role = Literal["probe", "trace", "sketch", "train", "predict"]


class _Wire:
    """A dataclass of JSON values; tuples travel as lists."""

    def to_wire(self) -> dict[str, Any]:
        """As a message of :mod:`archloop.sandbox.wire`."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_wire(cls, message: dict[str, Any]) -> Self:
        """From the message, which comes from the main process and is trusted."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in message.items()})


@dataclass(frozen=True, kw_only=True)
class CandidateJob(_Wire):
    """What is to be done with one network in a process of its own."""

    role: Role
    code: str
    seed: int
    max_params: int | None
    """Parameter budget."""
    shape: tuple[int, ...]
    """(channels, height, width) of what the network gets."""
    classes: int
    """Number of logits."""
    meta: bool
    """On torch's meta device, which allocates nothing."""
    threads: int
    batch_size: int
    augmentation: str
    resize: int | None
    """Side in pixels that images are resized to."""
    mean: tuple[float, ...]
    """Per channel; empty without a task."""
    std: tuple[float, ...]
    steps_per_batch: int
    """Optimiser steps that ``learn()`` may make for each batch."""
    lr_schedule: LRSchedule
    channels_last: bool
    """Try the channels-last layout."""
    bf16: bool
    """Try bfloat16 autocast."""
    prm: dict[str, Any]
    """The hyperparameters that a network is given."""
    image_shape: tuple[int, ...] = ()
    """(channels, height, width) of the task's images; for ``train`` and ``predict``."""
    images: int = 0
    """Training images of the epoch; for ``train``."""
    training: Training = "contract"
    """Whose loop trains, ``contract`` or ``harness``; for ``train`` and ``predict``."""


@dataclass(frozen=True, kw_only=True)
class FeedJob(_Wire):
    """The epoch that one candidate is fed."""

    shape: tuple[int, int, int, int]
    """(batch, channels, height, width) of a slot of the shared memory."""
    batch_size: int
    augmentation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None
    seed: int
    channels_last: bool = False
    """Layout of the batches."""
