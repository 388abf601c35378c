"""One epoch of a candidate: by its own ``learn()``, or by the harness's fixed loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from archloop.sandbox.feed import TrainData
from archloop.sandbox.network import Builder
from archloop.sandbox.phase import Fault, Phase
from archloop.sandbox.weights import trainable_tensors
from archloop.types import LRSchedule, Outcome

MOST_PASSES = 2
"""Forward passes of an image in training mode that one epoch may hold: methods such as
sharpness-aware minimisation need two for each step."""
_CLIP_NORM = 3.0
"""Gradient norm of the fixed loop, the habit of LEMUR's networks (``learn()`` of most of them)."""


def train(
    builder: Builder, net: nn.Module, batches: TrainData, job: dict[str, Any], phase: Phase
) -> dict[str, int]:
    """Train for the epoch and check what came of it.

    Args:
        builder: Made ``net``.
        net: Fresh.
        batches: The epoch.
        job: ``training``, ``prm``, ``steps_per_batch``, ``lr_schedule``, ``images``.
        phase: Told how far it is.

    Returns:
        ``steps`` of the optimiser that made the most, and images passed ``forward`` in training.
    """
    phase.enter(Outcome.TRAIN_ERROR)
    steps, passes = _OptimiserSteps(), _Passes(net)
    contract: Any = net
    most = len(batches) * job["steps_per_batch"]
    with scheduled(job["lr_schedule"], most):
        if job["training"] == "contract":
            contract.train_setup(dict(job["prm"]))
            net.train()
            contract.learn(batches)
        else:
            net.train()
            _fixed_loop(net, batches, job["prm"], builder.device)
    if steps.most > most:
        raise Fault(
            Outcome.PROTOCOL_VIOLATION,
            f"learn() made {steps.most} steps with one optimiser; one epoch has {len(batches)} "
            f"batches, {job['steps_per_batch']} step each",
        )
    if passes.images > MOST_PASSES * job["images"]:
        raise Fault(
            Outcome.PROTOCOL_VIOLATION,
            f"learn() trained on {passes.images} images; one epoch has {job['images']}",
        )
    _check_weights(builder, net)
    return {"steps": steps.most, "passes": passes.images}


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
def scheduled(schedule: LRSchedule, steps: int) -> Iterator[None]:
    """Let the rates of all optimisers follow a schedule over so many steps of each."""
    if schedule == "constant":
        yield
        return
    done: dict[Optimizer, int] = {}
    rates: dict[Optimizer, list[Any]] = {}

    def lower(optimizer: Optimizer, *_: object) -> None:
        share = max(0.0, 1.0 - done.get(optimizer, 0) / steps)
        rates[optimizer] = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * share

    def restore(optimizer: Optimizer, *_: object) -> None:
        done[optimizer] = done.get(optimizer, 0) + 1
        for group, rate in zip(optimizer.param_groups, rates.pop(optimizer), strict=True):
            group["lr"] = rate

    before = register_optimizer_step_pre_hook(lower)
    after = register_optimizer_step_post_hook(restore)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def _check_weights(builder: Builder, net: nn.Module) -> None:
    weights = trainable_tensors(net, builder.module)
    if over := builder.over_budget(sum(w.numel() for w in weights)):
        raise over
    if not all(bool(torch.isfinite(w).all()) for w in weights):
        raise Fault(Outcome.NON_FINITE, "a parameter is NaN or infinite after training")


class _OptimiserSteps:
    """Counts the steps of each optimiser: kept batches can be replayed, steps give it away."""

    def __init__(self) -> None:
        self._counts: dict[Optimizer, int] = {}
        register_optimizer_step_post_hook(self._count)

    def _count(self, optimizer: Optimizer, *_: object) -> None:
        self._counts[optimizer] = self._counts.get(optimizer, 0) + 1

    @property
    def most(self) -> int:
        """Steps of the optimiser that made the most."""
        return max(self._counts.values(), default=0)


class _Passes:
    """Counts the images that pass through a network with gradients."""

    def __init__(self, net: nn.Module) -> None:
        self.images = 0
        nn.Module.register_forward_pre_hook(net, self._count)

    def _count(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled() and inputs and isinstance(inputs[0], torch.Tensor):
            self.images += len(inputs[0])
