"""Weights of a candidate: found, packed, loaded."""

from __future__ import annotations

import json
import types

import pytest
import torch
from torch import nn

from archloop.sandbox import wire
from archloop.sandbox.candidate import state
from archloop.sandbox.candidate.weights import count, trainable_tensors
from archloop.sandbox.host import measure


def trained_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    net(torch.randn(8, 3, 8, 8))
    return net


def test_weights_travel_as_plain_bytes() -> None:
    net = trained_net()
    spec, data = state.pack(net)
    assert {name for name, _, _ in spec} == set(net.state_dict())
    torch.manual_seed(1)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    other(torch.randn(8, 3, 8, 8))
    state.load(other, json.loads(json.dumps(spec)), bytearray(data))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_weights_of_another_network_are_refused() -> None:
    spec, data = state.pack(trained_net())
    with pytest.raises(state.StateError, match=r"lacks 1\.bias"):
        state.load(nn.Sequential(nn.Conv2d(3, 4, 3)), spec, bytearray(data))
    wider = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.LazyLinear(2))
    wider(torch.randn(8, 3, 8, 8))
    with pytest.raises(state.StateError, match=r"weight is torch\.float32 of .*, trained it is"):
        state.load(wider, spec, bytearray(data))


def test_a_weight_with_no_plain_form_is_named() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("odd", torch.eye(3).to_sparse())
    with pytest.raises(state.StateError, match="odd is a torch.sparse_coo tensor"):
        state.pack(net)


def test_a_tensor_with_two_names_is_one_weight() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    spec, data = state.pack(net)
    assert len(spec) == 3
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    other[1].weight = other[0].weight
    state.load(other, spec, bytearray(data))
    assert torch.equal(other[1].weight, net[0].weight)


def test_a_description_of_weights_is_bounded() -> None:
    spec = [["w", "float32", [1] * 64]]
    assert measure._spec(spec) == spec
    with pytest.raises(wire.WireError):
        measure._spec([["w", "float32", [1] * 65]])


def test_weights_are_found_wherever_they_are() -> None:
    module = types.ModuleType("candidate")
    module.__dict__["KEPT"] = {"deep": [(torch.zeros(7, requires_grad=True),)]}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.same = self.layer
            self.frozen = nn.Parameter(torch.zeros(5), requires_grad=False)
            self.register_buffer("buffer", torch.zeros(100))
            self.plain = [{"w": torch.zeros(11, requires_grad=True)}]
            self.lazy = nn.LazyLinear(4)
            self.loss = self.layer.weight.sum()
            self.optimizer = torch.optim.Adam([torch.zeros(13, requires_grad=True)])

    assert count(trainable_tensors(Net(), module)) == 8 + 5 + 11 + 13 + 7
