"""Weights of a candidate: found, packed, loaded."""

from __future__ import annotations

import json
import types
from typing import Any

import pytest
import torch
from torch import nn

from archloop.sandbox import wire
from archloop.sandbox.candidate import state
from archloop.sandbox.candidate.weights import count, trainable_tensors
from archloop.sandbox.host.weights import Spec


def trained_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    net(torch.randn(8, 3, 8, 8))
    return net


def stated(net: nn.Module) -> Spec:
    """What the main process hears of a network's tensors."""
    return Spec.parse(json.loads(json.dumps(state.describe(net))))


def test_weights_travel_as_plain_bytes() -> None:
    net = trained_net()
    spec, data = state.pack(net)
    assert {name for name, *_ in spec} == set(net.state_dict())
    assert Spec.parse(spec).size == len(data)
    torch.manual_seed(1)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    other(torch.randn(8, 3, 8, 8))
    assert stated(net).differs(stated(other)) is None
    state.load(other, bytearray(data))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_weights_are_put_into_the_order_of_the_network_that_takes_them() -> None:
    def made(*names: str) -> nn.ModuleDict:
        sizes = {"a": 3, "b": 5}
        return nn.ModuleDict({name: nn.Linear(2, sizes[name]) for name in names})

    one, other = made("a", "b"), made("b", "a")
    assert list(stated(one)) != list(stated(other))
    _, data = state.pack(one)
    state.load(other, bytearray(stated(one).arranged(data, stated(other))))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_weights_of_another_network_are_refused() -> None:
    trained = stated(trained_net())
    found = trained.differs(stated(nn.Sequential(nn.Conv2d(3, 4, 3))))
    assert found == "built anew it lacks 1.bias, 1.num_batches_tracked, 1.running_mean"
    wider = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.LazyLinear(2))
    wider(torch.randn(8, 3, 8, 8))
    found = trained.differs(stated(wider))
    assert found is not None
    assert "3.weight is float32 of (2, 180), trained it is float32 of (2, 144)" in found
    liar = Spec.parse([["\x1b" + "w" * 5000, "int8", [], False]])
    assert len(liar.differs(trained) or "") <= 300
    assert (liar.differs(trained) or "").isprintable()


def test_four_bytes_count_as_one_parameter() -> None:
    net = nn.Module()
    for name, kind in (("a", torch.complex64), ("b", torch.float64), ("c", torch.float16)):
        net.register_parameter(name, nn.Parameter(torch.zeros(10, dtype=kind)))
    net.register_buffer("mean", torch.zeros(100))
    assert stated(net).n_parameters == 45
    assert count(list(net.parameters())) == 45


def test_parameters_and_buffers_have_a_budget_each() -> None:
    spec = Spec.parse([["w", "float32", [100_000], True], ["b", "float32", [25_000], False]])
    assert spec.over_budget(None) is spec.over_budget(100_000) is None
    assert spec.over_budget(99_999) == "100,000 parameters; at most 99,999 are allowed"
    buffers = Spec.parse([["b", "float32", [25_001], False]])
    assert buffers.over_budget(100_000) == (
        "buffers as large as 25,001 parameters; at most 25,000 are allowed"
    )


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
    state.load(other, bytearray(data))
    assert torch.equal(other[1].weight, net[0].weight)


@pytest.mark.parametrize(
    "rows",
    [
        None,
        [["w", "float32", [1] * 65, True]],
        [["w", "float128", [1], True]],
        [["w", "float32", [-1], True]],
        [["w", "float32", [True], True]],
        [["w", "float32", [1], 1]],
        [["w", "float32", [1]]],
        [["w", "float32", [1], True], ["w", "float32", [2], True]],
    ],
)
def test_a_description_of_weights_is_checked(rows: Any) -> None:
    assert Spec.parse([["w", "float32", [1] * 64, True]]).size == 4
    with pytest.raises(wire.WireError):
        Spec.parse(rows)


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
