"""One epoch of a candidate: by its own ``learn()``, or by the harness's fixed loop."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from archloop.sandbox.candidate.network import Builder
from archloop.sandbox.candidate.phase import Fault, Phase
from archloop.sandbox.candidate.state import tensors
from archloop.sandbox.candidate.weights import trainable_tensors
from archloop.sandbox.feed.feed import TrainData
from archloop.sandbox.job import CandidateJob
from archloop.types import LRSchedule, Outcome

MOST_PASSES = 2
"""Largest number of forward passes of an image in training mode in one epoch: methods such as
sharpness-aware minimisation need two for each step."""
_CLIP_NORM = 3.0
"""Gradient norm limit of the fixed loop, as in ``learn()`` of most of LEMUR's networks."""


def train(
    builder: Builder, net: nn.Module, batches: TrainData, job: CandidateJob, phase: Phase
) -> dict[str, int]:
    """Train for one epoch and check the result.

    Args:
        builder: Made ``net``.
        net: Fresh.
        batches: The epoch.
        job: What is to be done with it.
        phase: Told how far it is.

    Returns:
        ``steps``: optimiser steps of the parameter with the most of them; ``passes``: images that
        passed ``forward`` in training; ``unchanged``: whether every parameter is as it was.
    """
    phase.enter(Outcome.TRAIN_ERROR)
    before = _Values(net)
    contract: Any = net
    own = job.training == "contract"
    most = len(batches) * (job.steps_per_batch if own else 1)
    with stepping(job.lr_schedule, most) as steps:
        passes = _Passes(net, steps)
        if own:
            contract.train_setup(builder.prm())
            net.train()
            contract.learn(batches)
        else:
            net.train()
            _fixed_loop(net, batches, job.prm, builder.device)
    if steps.most > most:
        raise Fault(
            Outcome.PROTOCOL_VIOLATION,
            f"learn() made {steps.most} optimiser steps; one epoch has {len(batches)} batches, "
            f"{job.steps_per_batch} step each",
        )
    if passes.images > MOST_PASSES * job.images:
        raise Fault(
            Outcome.PROTOCOL_VIOLATION,
            f"learn() trained on {passes.images} images; one epoch has {job.images}"
            + passes.of_closures(),
        )
    _check_weights(builder, net)
    unchanged = before.equal(_Values(net))
    return {"steps": steps.most, "passes": passes.images, "unchanged": unchanged}


def _fixed_loop(
    net: nn.Module, batches: TrainData, prm: dict[str, Any], device: torch.device
) -> None:
    """SGD with momentum on the cross-entropy, one step a batch, as most of LEMUR does."""
    parameters = list(nn.Module.parameters(net))
    optimizer = torch.optim.SGD(parameters, lr=prm["lr"], momentum=prm["momentum"])
    for inputs, labels in batches:
        optimizer.zero_grad()
        logits = net(inputs.to(device))
        loss: Any = nn.functional.cross_entropy(logits, labels.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, _CLIP_NORM)
        optimizer.step()


@contextmanager
def stepping(schedule: LRSchedule, steps: int) -> Iterator[Steps]:
    """Count optimiser steps and apply the schedule to all learning rates."""
    counted = Steps(None if schedule == "constant" else steps)
    hooks = (
        register_optimizer_step_pre_hook(counted.before),
        register_optimizer_step_post_hook(counted.after),
    )
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


class _Step(NamedTuple):
    """An optimiser step in progress."""

    optimizer: Optimizer
    counts: list[tuple[torch.Tensor, int]]
    """Its parameters, and their step counts before it."""
    rates: list[tuple[dict[str, Any], Any]]
    """Parameter groups whose rate was lowered for the step, with their original rates."""


class Steps:
    """Counts the optimiser steps of each parameter, which reveals that stored batches were reused.

    Steps are counted per parameter, not per optimiser, because a network may create a new optimiser
    for each step. A step inside the step of a wrapping optimiser counts once.

    Args:
        length: Number of steps after which a linear rate reaches zero; ``None``: constant rate.
    """

    def __init__(self, length: int | None) -> None:
        self._length = length
        self._counts: dict[int, tuple[torch.Tensor, int]] = {}
        """By ``id``; the parameter is kept, so that its id is not reused."""
        self._open: list[_Step] = []
        """Open steps, outermost first."""

    @property
    def current(self) -> Optimizer | None:
        """The optimiser whose step is in progress."""
        return self._open[-1].optimizer if self._open else None

    @property
    def most(self) -> int:
        """Steps of the parameter with the most steps."""
        return max((n for _, n in self._counts.values()), default=0)

    def before(self, optimizer: Optimizer, *_: object) -> None:
        """A step begins."""
        self._close(optimizer)  # a step that ended with an exception
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        counts = [(p, self._of(p)) for p in parameters]
        rates: list[tuple[dict[str, Any], Any]] = []
        if self._length is not None:
            share = max(0.0, 1.0 - max((n for _, n in counts), default=0) / self._length)
            lowered = {id(group) for step in self._open for group, _ in step.rates}
            rates = [(g, g["lr"]) for g in optimizer.param_groups if id(g) not in lowered]
            for group, rate in rates:
                group["lr"] = rate * share
        self._open.append(_Step(optimizer, counts, rates))

    def after(self, optimizer: Optimizer, *_: object) -> None:
        """The step ended."""
        for parameter, n in self._close(optimizer):
            self._counts[id(parameter)] = parameter, max(self._of(parameter), n + 1)

    def _close(self, optimizer: Optimizer) -> list[tuple[torch.Tensor, int]]:
        """Restore the learning rates of a step and of open steps inside it.

        Returns:
            The parameters of the step with their earlier step counts.
        """
        if all(step.optimizer is not optimizer for step in self._open):
            return []
        while True:
            step = self._open.pop()
            for group, rate in step.rates:
                group["lr"] = rate
            if step.optimizer is optimizer:
                return step.counts

    def _of(self, parameter: torch.Tensor) -> int:
        return self._counts.get(id(parameter), (parameter, 0))[1]


class _Values:
    """What a network's registered parameters hold, as hashes: those that a rebuilt one gets."""

    def __init__(self, net: nn.Module) -> None:
        self._kept = [t for t in tensors(net).values() if isinstance(t, nn.Parameter)]
        """Alive, so that no other tensor gets the identity of one."""
        self._hashes = {id(tensor): _hash(tensor) for tensor in self._kept}

    def equal(self, later: _Values) -> bool:
        """Whether every parameter found later was there and holds the same."""
        return later._hashes.items() <= self._hashes.items()


def _hash(tensor: torch.Tensor) -> str:
    if not tensor.numel() or tensor.layout is not torch.strided:
        return ""
    plain = tensor.detach().as_subclass(torch.Tensor).cpu().contiguous()
    return hashlib.blake2b(plain.view(-1).view(torch.uint8).numpy().data).hexdigest()


def _check_weights(builder: Builder, net: nn.Module) -> None:
    weights = trainable_tensors(net, builder.module)
    if over := builder.over_budget(sum(w.numel() for w in weights)):
        raise over
    if not all(bool(torch.isfinite(w).all()) for w in weights):
        raise Fault(Outcome.NON_FINITE, "a parameter is NaN or infinite after training")


class _Passes:
    """Counts the images that pass through a network with gradients."""

    def __init__(self, net: nn.Module, steps: Steps) -> None:
        self.images = 0
        self._steps, self._in_steps = steps, Counter[str]()
        """Of the images, those that passed within a step, by the optimiser's name."""
        nn.Module.register_forward_pre_hook(net, self._count)

    def _count(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled() and inputs and isinstance(inputs[0], torch.Tensor):
            self.images += len(inputs[0])
            if (optimizer := self._steps.current) is not None:
                self._in_steps[type(optimizer).__name__] += len(inputs[0])

    def of_closures(self) -> str:
        """Which optimiser's step ran its closure again and again; empty if none did."""
        name, images = max(self._in_steps.items(), key=lambda item: item[1], default=("", 0))
        return f": {name}.step() repeats its closure" if 2 * images > self.images else ""
