"""What an executor can be asked to do, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from archloop.types import GraphSketch, Verdict

T = TypeVar("T")


class Job(Generic[T]):
    """A piece of work whose result is a ``T``; one of the classes below."""


@dataclass(frozen=True)
class Evaluated:
    """A network that was evaluated."""

    verdict: Verdict
    begin: float
    """When its evaluation began, in Unix time (seconds)."""
    end: float


@dataclass(frozen=True)
class Traced:
    """A network whose computation graph was asked for."""

    verdict: Verdict
    """On building it; without a graph, its ``error`` says why."""
    graph: GraphSketch | None


@dataclass(frozen=True)
class Evaluate(Job[Evaluated]):
    """Train a network for one epoch and measure its accuracy."""

    code: str
    seed: int
    max_params: int | None = None
    """Parameter budget."""
    task: str | None = None
    """Name of one of the executor's tasks; ``None``: its only one."""


@dataclass(frozen=True)
class Probe(Job[Verdict]):
    """Import and instantiate a network, count its parameters, make a dummy forward pass."""

    code: str
    shape: tuple[int, int, int]
    """(channels, height, width) of an image."""
    classes: int
    """Number of logits."""
    max_params: int | None = None
    meta: bool = False
    """On torch's meta device, which allocates nothing."""


@dataclass(frozen=True)
class Trace(Job[Traced]):
    """Build a network and record the computation graph of its forward pass."""

    code: str
    shape: tuple[int, int, int]
    """(channels, height, width) of an image."""
    classes: int
    """Number of logits."""
