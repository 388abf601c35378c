"""The accuracy of trained weights, and what may be wrong with it: the main process's side.

The accuracy is that of the network rebuilt from its source, in a process of its own, with the
weights that training left: bytes in an order that the new process states itself. It is asked for
logits in batches that nobody can predict (:mod:`archloop.sandbox.host.draws`). A second new process
is asked what the network knows before it is trained, then for some images again, in other batches
and with a little noise; what differs gives the flags. Last, it takes some steps of the fixed
training loop, whose time is the reference for the work of training.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archloop.sandbox import wire
from archloop.sandbox.host import flags
from archloop.sandbox.host.conversation import BUILDING, Conversation, FailedError
from archloop.sandbox.host.draws import Plan
from archloop.sandbox.host.epoch import Trained
from archloop.sandbox.host.server import shared_memory
from archloop.sandbox.host.weights import Spec
from archloop.types import Outcome

Images = NDArray[np.uint8]
Logits = NDArray[np.float32]

BATCH = 250
"""Images asked for at once, at most."""
_BATCH_BYTES = 64 << 20
"""Largest batch of images in bytes, as floats."""
_STEPS = 5
"""Steps of the fixed loop that are timed, after a first one."""
_SHARE_OF_STEPS = 0.02
"""At most this share of the epoch's, so that measuring stays cheap."""


def largest_batch(shape: Sequence[int]) -> int:
    """Images of one request, for inputs of (channels, height, width)."""
    return max(1, min(BATCH, _BATCH_BYTES // (4 * int(np.prod(shape)))))


@dataclass(frozen=True)
class Predicted:
    """What the rebuilt network answered."""

    n_params: int
    """Counted outside of any process of the network."""
    logits: Logits
    """(M, classes), in the order of the images."""
    cpu_seconds: float | None
    """Processor seconds of all forward passes; ``None`` on a GPU and where it is not counted."""
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """What the second rebuilt network answered."""

    untrained: Logits | None
    """(A, classes) of ``plan.first``, before it had its weights; ``None``: not all were finite."""
    build: float | None
    """Processor seconds of building it."""
    steps: tuple[float, ...]
    """Processor seconds of steps of the fixed loop."""
    flags: tuple[str, ...]


def predict(conversation: Conversation, trained: Trained, images: Images, plan: Plan) -> Predicted:
    """The logits of all images; for exceptions see :class:`Conversation`."""
    asker = _Asker(conversation)
    n_params = _counted(conversation, trained, asker.spec)
    asker.load(trained)
    before = conversation.child.cpu_seconds()
    answers = [asker(images[batch]) for batch in plan.batches]
    after = conversation.child.cpu_seconds()
    logits = np.empty((len(images), conversation.job.classes), np.float32)
    logits[np.concatenate(plan.batches)] = np.concatenate(answers)
    on_cpu = conversation.child.gpu is None and before is not None and after is not None
    found = []
    if not asker.unchanged():
        found.append(flags.CHANGES_WEIGHTS)
    if flags.lost_state(trained.answer, asker.answer(), conversation.job.classes):
        found.append(flags.STATE_LOST)
    return Predicted(
        n_params=n_params,
        logits=logits,
        cpu_seconds=after - before if on_cpu else None,  # type: ignore[operator]
        flags=tuple(found),
    )


def check(
    conversation: Conversation, trained: Trained, images: Images, plan: Plan, logits: Logits
) -> Checked:
    """What gives the flags; for exceptions see :class:`Conversation`.

    Args:
        conversation: With a process that has not been asked for anything yet.
        trained: The weights.
        images: (M, C, H, W).
        plan: What to ask for.
        logits: (M, classes), as :func:`predict` found them.
    """
    asker = _Asker(conversation)
    build = conversation.child.cpu_seconds()
    untrained = asker.untrained(images[plan.first])
    asker.load(trained)
    found = _consistency(asker, images, logits, plan)
    if not asker.unchanged():
        found.append(flags.CHANGES_WEIGHTS)
    return Checked(untrained, build, asker.steps(trained), tuple(found))


def untrained(conversation: Conversation, images: Images) -> Logits | None:
    """The logits (B, classes) of a network that was built, and no more; ``None``: not finite."""
    return _Asker(conversation).untrained(images)


def _counted(conversation: Conversation, trained: Trained, spec: Spec) -> int:
    """The number of parameters, by what a process says that has not seen training.

    Raises:
        FailedError: The budget is exceeded, training left another network, or its own count is
            short of this one.
    """
    found, job = conversation.verdict, conversation.job
    if (text := trained.spec.differs(spec)) is not None:
        text = f"the network does not take its weights: {text}"
        raise FailedError(found(Outcome.PROTOCOL_VIOLATION, text))
    if (text := spec.over_budget(job.max_params)) is not None:
        raise FailedError(found(Outcome.OVER_BUDGET, text))
    if min(trained.n_params, conversation.n_params or 0) < spec.n_parameters:
        text = f"counts {trained.n_params:,} parameters in itself; it has {spec.n_parameters:,}"
        raise FailedError(found(Outcome.PROTOCOL_VIOLATION, text))
    return trained.n_params


class _Asker:
    """A rebuilt network that answers; one deadline holds for all answers."""

    def __init__(self, conversation: Conversation) -> None:
        self._talk, self._classes = conversation, conversation.job.classes
        config = conversation.config
        conversation.build()
        self.spec = Spec.parse(
            conversation.expect("stated", config.build_seconds, BUILDING).get("spec")
        )
        self._seconds = config.predict_seconds
        self._deadline = time.monotonic() + self._seconds

    def load(self, trained: Trained) -> None:
        """Give the network its weights, as bytes in its own order, and nothing besides."""
        weights = trained.spec.arranged(trained.weights, self.spec)
        message = {"do": "load", "bytes": len(weights), "channels_last": trained.channels_last}
        what, fd = "loading the weights", shared_memory(np.frombuffer(weights, np.uint8))
        try:
            self._request(message, fds=(fd,), what=what)
            self._talk.expect("ready", self._talk.config.build_seconds, what)
        finally:
            os.close(fd)

    def __call__(self, images: Images) -> Logits:
        """The logits (B, classes) of one batch."""
        logits = self._answer(images)
        if not np.isfinite(logits).all():
            text = "a logit is NaN or infinite after training"
            raise FailedError(self._talk.verdict(Outcome.NON_FINITE, text))
        return logits

    def untrained(self, images: Images) -> Logits | None:
        """The logits before the network has its weights; ``None``: not all are finite."""
        size = largest_batch(self._talk.job.shape)
        parts = [self._answer(images[i : i + size]) for i in range(0, len(images), size)]
        logits = np.concatenate(parts)
        return logits if np.isfinite(logits).all() else None

    def _answer(self, images: Images) -> Logits:
        talk, what = self._talk, "prediction"
        self._request({"do": "predict", "rows": len(images)}, images.tobytes())
        talk.expect("logits", self._left(), what)
        raw = talk.receive_bytes(len(images) * self._classes * 4, self._left(), what)
        return np.frombuffer(raw, np.float32).reshape(len(images), self._classes)

    def answer(self) -> object:
        """To noise, as the process says; see :mod:`archloop.sandbox.candidate.answers`."""
        self._request({"do": "answer"})
        return self._talk.expect("answered", self._left(), "prediction").get("answer")

    def unchanged(self) -> bool:
        """Whether the weights are still those that were loaded."""
        self._request({"do": "compare"})
        return self._talk.expect("compared", self._left(), "prediction").get("unchanged") is True

    def steps(self, trained: Trained) -> tuple[float, ...]:
        """Seconds of steps of the fixed loop; none if it fails, which says nothing about learn().

        They are the last that a process is asked for.
        """
        timed = max(1, min(_STEPS, int(_SHARE_OF_STEPS * trained.batches)))
        on_gpu, found = self._talk.child.gpu is not None, []
        message = {"do": "step", "bf16": trained.bf16, "channels_last": trained.channels_last}
        try:
            for _ in range(1 + timed):
                before = time.monotonic() if on_gpu else self._talk.child.cpu_seconds()
                self._request(message)
                self._talk.expect("stepped", self._left(), "prediction")
                after = time.monotonic() if on_gpu else self._talk.child.cpu_seconds()
                if before is None or after is None:
                    return ()
                found.append(after - before)
        except (FailedError, wire.WireError):
            return ()
        return tuple(found)

    def _request(
        self,
        message: dict[str, Any],
        data: bytes = b"",
        *,
        fds: tuple[int, ...] = (),
        what: str = "prediction",
    ) -> None:
        self._talk.send_bytes(wire.frame(message) + data, self._left(), what, fds)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            text = f"prediction took longer than {self._seconds:g} s"
            raise FailedError(self._talk.verdict(Outcome.TIMEOUT, text))
        return left


def _consistency(asker: _Asker, images: Images, logits: Logits, plan: Plan) -> list[str]:
    """Ask for some images again: in the same and in other batches, and with noise of one step."""
    chosen = images[plan.chosen]
    noisy = np.clip(chosen + plan.noise, 0, 255).astype(np.uint8)
    same = plan.batches[plan.repeated]
    requests = [images[same], *(a[batch] for a in (chosen, noisy) for batch in plan.others)]
    answers = {int(n): asker(requests[n]) for n in plan.order}
    if not flags.same_logits(answers[0], logits[same]):
        # If this differs, every other comparison would differ too.
        return [flags.STOCHASTIC]
    others = len(plan.others)
    again, noised = (
        np.concatenate([answers[n] for n in range(start, start + others)])
        for start in (1, 1 + others)
    )
    known, found = logits[plan.chosen][np.concatenate(plan.others)], []
    if not flags.same_logits(again, known):
        found.append(flags.BATCH_DEPENDENT)
    elif flags.changed_predictions(noised, known) > flags.MOST_BRITTLE:
        found.append(flags.BRITTLE)
    return found
