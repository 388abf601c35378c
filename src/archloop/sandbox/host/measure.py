"""Training in one process, measuring in another: the main process's side of both.

The accuracy is that of the network rebuilt from its source with the weights that training left, on
images that are sent in batches, in an order without information; labels, metric and clock stay in
the main process. A few images are asked for again, in other batches and with a little noise; the
differences give the flags.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from archloop.sandbox import wire
from archloop.sandbox.host import flags
from archloop.sandbox.host.conversation import BUILDING, Conversation, FailedError, number
from archloop.sandbox.host.server import Child, ServerLostError
from archloop.sandbox.job import FeedJob
from archloop.types import Outcome

BATCH = 250
"""Images asked for at once."""
_BATCH_BYTES = 64 << 20
"""Largest batch of images in bytes, as floats."""
_SPARE, _LEAST_SPARE = 0.25, 10_000
"""Numbers in buffers (running statistics, masks), as a share of the parameter budget, and at least
so many. Trained buffers do not count as parameters, so this limit keeps them from bypassing the
budget."""
AGAIN = 512
"""Images that are asked for again to find flags."""
_ODD_BATCH = 96
_PERHAPS_TOO_FAST = (Outcome.TRAIN_ERROR, Outcome.NON_FINITE)
_FEED_SECONDS = 60.0
_SEND_SECONDS = 10.0
"""Minimum time for receiving the weights, which are some megabytes at most."""
_MOST_DIMENSIONS = 64
"""Of a tensor, in torch."""
_TYPE_BYTES = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "bfloat16": 2,
    "complex64": 8,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


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
    spec: list[list[Any]]
    weights: bytes
    channels_last: bool
    steps: int
    """Optimiser steps of the parameter with the most of them, as reported by the process."""
    seconds: float
    """From the first batch to the last byte of the weights, on the main process's clock."""
    flags: tuple[str, ...]
    answer: object
    """To noise, as the process says; see :mod:`archloop.sandbox.candidate.answers`."""


@dataclass(frozen=True)
class Measured:
    """Flags that follow from the predictions."""

    accuracy: float
    flags: tuple[str, ...]


def train(conversation: Conversation, feeding: Feeding) -> Trained:
    """Probe and train for one epoch; for exceptions see :class:`Conversation`."""
    config = conversation.config
    n_params = conversation.build()
    wish = conversation.expect("feed", config.build_seconds, BUILDING)
    channels_last, bf16 = wish.get("channels_last") is True, wish.get("bf16") is True
    job = replace(feeding.job, channels_last=channels_last)
    total = _ask(feeding.feeder, job.to_wire(), (feeding.ring, feeding.feeder_end))["total"]
    conversation.phase = Outcome.TRAIN_ERROR
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
    spec = _spec(message.get("spec"))
    _require_budget(conversation, spec)
    size = number(message, "bytes", config.memory_mb << 20)
    if size != sum(_TYPE_BYTES[kind] * math.prod(shape) for _, kind, shape in spec):
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
        channels_last=channels_last,
        steps=number(message, "steps"),
        seconds=round(whole, 3),
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


def _spec(value: Any) -> list[list[Any]]:
    """[name, type, shape] of every weight, as a candidate sent it.

    Raises:
        wire.WireError: The value has another form.
    """
    if not isinstance(value, list) or not all(_is_spec_row(row) for row in value):
        raise wire.WireError("no description of weights")
    return value


def _is_spec_row(row: Any) -> bool:
    return (
        isinstance(row, list)
        and len(row) == 3
        and isinstance(row[0], str)
        and isinstance(row[1], str)
        and row[1] in _TYPE_BYTES
        and isinstance(row[2], list)
        and len(row[2]) <= _MOST_DIMENSIONS
        and all(type(n) is int and 0 <= n < 2**40 for n in row[2])
    )


def _require_budget(conversation: Conversation, spec: list[list[Any]]) -> None:
    """Parameters were counted in the candidate's process; what leaves it is counted here."""
    budget = conversation.job.max_params
    if budget is None:
        return
    total, most = sum(math.prod(shape) for *_, shape in spec), budget + _spare(budget)
    if total > most:
        text = f"{total:,} numbers in parameters and buffers; at most {most:,} are allowed"
        raise FailedError(conversation.verdict(Outcome.OVER_BUDGET, text))


def _spare(budget: int) -> int:
    return max(int(_SPARE * budget), _LEAST_SPARE)


def measure(
    conversation: Conversation,
    trained: Trained,
    weights_fd: int,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
) -> Measured:
    """Top-1 accuracy on images (M, C, H, W); for exceptions see :class:`Conversation`."""
    config = conversation.config
    conversation.build()
    message = {
        "spec": trained.spec,
        "bytes": len(trained.weights),
        "channels_last": trained.channels_last,
    }
    seconds, what = config.build_seconds, "loading the weights"
    # The candidate chose its names and shapes, and may not read it.
    conversation.send_bytes(wire.frame(message), seconds, what, (weights_fd,))
    ready = conversation.expect("ready", seconds, what)
    asker = _Asker(conversation)
    logits = asker(images, asker.batch)
    found = _consistency(asker, images, logits)
    if flags.lost_state(trained.answer, ready.get("answer"), conversation.job.classes):
        found.append(flags.STATE_LOST)
    if not asker.finish():
        found.append(flags.CHANGES_WEIGHTS)
    return Measured(float((logits.argmax(axis=1) == labels).mean()), tuple(found))


class _Asker:
    """Asks for logits; one deadline holds for all batches."""

    def __init__(self, conversation: Conversation) -> None:
        self._talk = conversation
        self._seconds = conversation.config.predict_seconds
        self._deadline = time.monotonic() + self._seconds
        self._classes = conversation.job.classes
        floats = 4 * int(np.prod(conversation.job.shape))
        self.batch = max(1, min(BATCH, _BATCH_BYTES // floats))

    def __call__(self, images: NDArray[np.uint8], batch: int) -> NDArray[np.float32]:
        """The logits (B, classes) of images, requested in batches of ``size``."""
        starts = range(0, len(images), batch)
        return np.concatenate([self._one(images[i : i + batch]) for i in starts])

    def _one(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        talk, what = self._talk, "prediction"
        request = wire.frame({"rows": len(images)}) + images.tobytes()
        talk.send_bytes(request, self._left(), what)
        talk.expect("logits", self._left(), what)
        raw = talk.receive_bytes(len(images) * self._classes * 4, self._left(), what)
        logits = np.frombuffer(raw, np.float32).reshape(len(images), self._classes)
        if not np.isfinite(logits).all():
            text = "a logit is NaN or infinite after training"
            raise FailedError(talk.verdict(Outcome.NON_FINITE, text))
        return logits

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            text = f"prediction took longer than {self._seconds:g} s"
            raise FailedError(self._talk.verdict(Outcome.TIMEOUT, text))
        return left

    def finish(self) -> bool:
        """End the prediction; returns whether the weights are unchanged."""
        talk = self._talk
        talk.send_bytes(wire.frame({"rows": 0}), self._left(), "prediction")
        return talk.expect("done", self._left(), "prediction").get("unchanged") is True


def _consistency(
    asker: _Asker, images: NDArray[np.uint8], logits: NDArray[np.float32]
) -> list[str]:
    """Ask for some images again: in the same and in other batches, and with noise of one step."""
    batch = asker.batch
    if not flags.same_logits(asker(images[:batch], batch), logits[:batch]):
        # If this differs, every other comparison would differ too.
        return [flags.STOCHASTIC]
    found, rng = [], np.random.default_rng(1)
    chosen = rng.permutation(len(images))[:AGAIN]
    again = images[chosen]
    if not flags.same_logits(asker(again, min(_ODD_BATCH, batch)), logits[chosen]):
        found.append(flags.BATCH_DEPENDENT)
    noise = rng.integers(-1, 2, again.shape, np.int16)
    noisy = np.clip(again + noise, 0, 255).astype(np.uint8)
    share = flags.changed_predictions(asker(noisy, batch), logits[chosen])
    if share > flags.MOST_BRITTLE and flags.BATCH_DEPENDENT not in found:
        found.append(flags.BRITTLE)
    return found
