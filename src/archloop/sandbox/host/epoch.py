"""One epoch of training, seen from the main process: who feeds, what leaves, what time it took.

Labels, metric and clock stay in the main process; the weights that training left are bytes here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from archloop.sandbox import wire
from archloop.sandbox.host import flags
from archloop.sandbox.host.conversation import BUILDING, Conversation, FailedError, number
from archloop.sandbox.host.server import Child, ServerLostError
from archloop.sandbox.host.weights import Spec
from archloop.sandbox.job import FeedJob
from archloop.types import Outcome

_PERHAPS_TOO_FAST = (Outcome.TRAIN_ERROR, Outcome.NON_FINITE)
_FEED_SECONDS = 60.0
_SEND_SECONDS = 10.0
"""Minimum time for receiving the weights, which are some megabytes at most."""


class FastWayError(FailedError):
    """The candidate failed in a faster layout or precision, and may work in the plain one."""


class Feeding(NamedTuple):
    """The feeder process, and the candidate's connection to it."""

    feeder: Child
    job: FeedJob
    ring: int
    """Descriptor of the shared memory."""
    candidate_end: int
    feeder_end: int
    """Descriptors of the socket between the two."""


@dataclass(frozen=True)
class Trained:
    """The result of the training process, and what the main process observed."""

    n_params: int
    """As the process counted them."""
    spec: Spec
    weights: bytes
    batches: int
    """Batches of the epoch."""
    channels_last: bool
    bf16: bool
    steps: int
    """Optimiser steps of the parameter with the most of them, as reported by the process."""
    seconds: float
    """From the first batch to the last byte of the weights, on the main process's clock."""
    on_gpu: bool
    cpu_before: float | None
    """Processor time of the process before the first batch was on offer."""
    flags: tuple[str, ...]
    answer: object
    """To noise, as the process says; see :mod:`archloop.sandbox.candidate.answers`."""


def train(conversation: Conversation, feeding: Feeding) -> Trained:
    """Probe and train for one epoch; for exceptions see :class:`Conversation`."""
    config = conversation.config
    n_params = conversation.build()
    wish = conversation.expect("feed", config.build_seconds, BUILDING)
    channels_last, bf16 = wish.get("channels_last") is True, wish.get("bf16") is True
    job = replace(feeding.job, channels_last=channels_last)
    total = _ask(feeding.feeder, job.to_wire(), (feeding.ring, feeding.feeder_end))["total"]
    conversation.phase = Outcome.TRAIN_ERROR
    cpu_before = conversation.child.cpu_seconds()
    start, fds = wire.frame({"total": total}), (feeding.ring, feeding.candidate_end)
    conversation.send_bytes(start, config.build_seconds, BUILDING, fds)
    begin = time.monotonic()
    try:
        message = conversation.expect("trained", config.train_seconds, "the epoch")
    except FailedError as failed:
        if (channels_last or bf16) and failed.verdict.outcome in _PERHAPS_TOO_FAST:
            raise FastWayError(failed.verdict) from None
        raise
    report = _ask(feeding.feeder, {"report": True})
    if report["given"] < total:
        text = f"learn() took {report['given']} of {total} batches of the epoch"
        raise FailedError(conversation.verdict(Outcome.TRAIN_ERROR, text))
    spec = Spec.parse(message.get("spec"))
    if (over := spec.over_budget(conversation.job.max_params)) is not None:
        raise FailedError(conversation.verdict(Outcome.OVER_BUDGET, over))
    size = number(message, "bytes", config.memory_mb << 20)
    if size != spec.size:
        raise wire.WireError("weights and their description differ")
    left = max(_SEND_SECONDS, config.train_seconds - (time.monotonic() - begin))
    weights = conversation.receive_bytes(size, left, "the epoch with its weights")
    # Time is taken only here: a process may report the end and still be training.
    done = time.monotonic()
    found = []
    if number(message, "passes") > report["images"]:
        found.append(flags.EXTRA_PASSES)
    whole = done - report["first"]
    if message.get("unchanged") is True:
        found.append(flags.UNTRAINED)
    if flags.is_long(done - report["last"], whole):
        found.append(flags.LATE_TRAINING)
    if flags.is_long(report["pause"], whole):
        found.append(flags.LONG_PAUSE)
    return Trained(
        n_params=n_params,
        spec=spec,
        weights=weights,
        batches=total,
        channels_last=channels_last,
        bf16=bf16,
        steps=number(message, "steps"),
        seconds=round(whole, 3),
        on_gpu=conversation.child.gpu is not None,
        cpu_before=cpu_before,
        flags=tuple(found),
        answer=message.get("answer"),
    )


def _ask(feeder: Child, message: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
    """The feeder runs no generated code, so if it does not answer, the machine is at fault."""
    try:
        wire.send(feeder.sock, message, fds)
        return wire.receive(feeder.sock, time.monotonic() + _FEED_SECONDS)
    except (wire.WireError, wire.DeadlineError) as error:
        text = f"the process that feeds batches was lost: {error}"
        raise ServerLostError(text, while_running=True) from None
