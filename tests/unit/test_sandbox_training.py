"""The steps of an epoch, and what flags say of its accuracy."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from archloop.sandbox.candidate.training import _Passes, stepping
from archloop.sandbox.host import flags


def test_a_linear_schedule_leaves_the_networks_own_rates_alone() -> None:
    def moved(*, own: bool) -> list[float]:
        weight = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        steps = []
        for _ in range(4):
            before = weight.item()
            weight.grad = torch.ones(1)
            optimizer.step()
            steps.append(before - weight.item())
            if own:
                optimizer.param_groups[0]["lr"] *= 0.5
        assert optimizer.param_groups[0]["lr"] == (0.0625 if own else 1.0)
        return steps

    with stepping("linear", 4):
        assert moved(own=False) == [1.0, 0.75, 0.5, 0.25]
        assert moved(own=True) == [1.0, 0.375, 0.125, 0.03125]
    with stepping("constant", 4):
        assert moved(own=False) == [1.0] * 4
    assert moved(own=False) == [1.0] * 4


def test_steps_are_counted_by_parameter_whatever_makes_them() -> None:
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner.param_groups, {})
            self.param_groups, self.inner = inner.param_groups, inner

        def step(self, closure: Any = None) -> None:
            self.inner.step()
            if closure is not None:
                closure()

    weight, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    with stepping("linear", 4) as steps:
        for _ in range(2):
            before = weight.item()
            torch.optim.SGD([nn.Parameter(torch.zeros(1)), weight], lr=1.0).step()
        assert before - weight.item() == 0.75, "a new optimiser does not begin anew"
        wrapper = Wrapper(torch.optim.SGD([weight], lr=1.0))
        wrapper.step()  # one step, at one and the same share
        assert weight.item() == pytest.approx(-2.25)
        with pytest.raises(ZeroDivisionError):
            wrapper.step(lambda: 1 / 0)
        assert steps.most == 4, "what the inner one did before counts"
        torch.optim.SGD([other], lr=1.0).step()
        assert steps.most == 4
        wrapper.step()
        assert wrapper.param_groups[0]["lr"] == 1.0
    assert steps.most == 5


def test_flags_of_an_accuracy() -> None:
    assert flags.of_accuracy("cifar10", 0.5, steps=700) == []
    assert flags.of_accuracy("cifar10", 0.9, steps=0) == ["no_steps", "implausible"]
    assert flags.of_accuracy("mine", 1.0, steps=1) == []
    assert flags.of_accuracy("mine", 0.1, steps=0) == ["no_steps"], "also at chance"
    assert not flags.is_long(0.9, 9.9)
    assert flags.is_long(4.9, 9.9)
    assert not flags.is_long(0.8, 0.9)


def test_answers_of_two_processes_are_compared() -> None:
    def answer(*logits: float) -> str:
        return base64.b64encode(np.array(logits, np.float32).tobytes()).decode()

    trained = answer(1, 0, 0, 1)
    assert flags.lost_state(trained, answer(0, 1, 1, 0), 2)
    assert flags.lost_state(trained, answer(0, 0, 0, 0), 2)
    assert not flags.lost_state(trained, answer(1.001, 0, 0, 1), 2)
    for odd in (None, 3, "no base64", answer(1, 0, 0), answer(1, 0), answer(1, 0, 0, np.nan)):
        assert not flags.lost_state(trained, odd, 2), "it is not known"


def test_an_optimiser_that_repeats_its_closure_is_named() -> None:
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.LBFGS(net.parameters(), lr=1.0, max_iter=5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = (net(torch.ones(4, 2)) - 3).square().sum()
        loss.backward()
        return loss

    with stepping("constant", 10) as steps:
        passes = _Passes(net, steps)
        net(torch.ones(4, 2))
        assert passes.of_closures() == ""
        optimizer.step(closure)
        assert passes.images > 8
        assert passes.of_closures() == ": LBFGS.step() repeats its closure"


def test_logits_are_compared_by_what_they_say() -> None:
    honest = np.random.default_rng(0).normal(size=(100, 10)).astype(np.float32)
    noisy = honest + np.random.default_rng(1).normal(0.0, 1e-3, honest.shape).astype(np.float32)
    assert flags.same_logits(honest, noisy)
    assert flags.same_logits(np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32))
    other = np.roll(honest, 1, axis=0)
    assert not flags.same_logits(honest, other)
    shift = np.float32(1e4)  # of all logits of an image: no prediction changes
    assert not flags.same_logits(honest + shift, other + shift)
    few = np.ones((100, 1), np.float32)
    few[:40] = 1e6  # a large spread of some images must not hide the others
    assert not flags.same_logits(honest * few, other * few)
    wide = np.zeros(10, np.float32)
    wide[3] = -1e6  # nor that of one class
    assert not flags.same_logits(honest + wide, other + wide)
