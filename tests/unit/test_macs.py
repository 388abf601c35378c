"""Multiply-accumulates of traced networks beside those that torch counts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from archloop.config import SandboxConfig
from archloop.novelty.macs import macs
from archloop.sandbox import Sandbox
from archloop.search.grammar import write_network
from conftest import network

SHAPE, CLASSES = (3, 16, 16), 10

NETWORKS = {
    "convolutions": ("", ""),
    "grouped": ("self.g = nn.Conv2d(3, 12, 3, groups=3, stride=2)", "x = self.g(x)[:, :3]"),
    "depthwise": ("self.d = nn.Conv2d(3, 3, 5, groups=3, padding=2)", "x = self.d(x)"),
    "dilated": ("self.d = nn.Conv2d(3, 3, 3, dilation=2)", "x = self.d(x)"),
    "transposed": ("self.t = nn.ConvTranspose2d(3, 3, 4, stride=2, groups=3)", "x = self.t(x)"),
    "one-dimensional": (
        "self.o = nn.Conv1d(3, 3, 3, padding=1)",
        "x = self.o(x.flatten(2)).view_as(x)",
    ),
    "skip and gate": (
        "self.a = nn.Conv2d(3, 3, 1)",
        "x = x + self.a(x) * torch.sigmoid(self.a(x.mean((2, 3), keepdim=True)))",
    ),
    "attention": (
        "self.m = nn.MultiheadAttention(16, 4, batch_first=True)",
        "t = x.mean(1); x = x + self.m(t, t, t)[0].unsqueeze(1)",
    ),
    "recurrent": (
        "self.r = nn.GRU(16, 16, batch_first=True)",
        "x = x + self.r(x.mean(1))[0].unsqueeze(1)",
    ),
    "transformer layer": (
        "self.e = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)",
        "x = x + self.e(x.mean(1)).unsqueeze(1)",
    ),
    "products of paths": ("", "x = x + (x.flatten(2) @ x.flatten(2).mT @ x.flatten(2)).view_as(x)"),
    "linear layers": (
        "self.l = nn.Linear(16, 16); self.b = nn.Linear(16, 16, bias=False)",
        "x = self.b(self.l(x))",
    ),
    "einsum": (
        "self.w = nn.Parameter(torch.ones(3, 3))",
        "x = torch.einsum('nchw,cd->ndhw', x, self.w)",
    ),
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig()) as opened:
        yield opened


def counts(sandbox: Sandbox, code: str) -> tuple[int | None, float]:
    """What is counted here, and half of what torch counts."""
    verdict, graph = sandbox.trace(code, shape=SHAPE, classes=CLASSES)
    assert graph is not None, verdict
    scope: dict[str, object] = {}
    exec(code, scope)
    net = scope["Net"]((1, *SHAPE), (CLASSES,), {"lr": 0.1, "momentum": 0.9}, "cpu")  # type: ignore[operator]
    net.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            net(torch.zeros(1, *SHAPE))
        torch.backends.mha.set_fastpath_enabled(True)
    assert counter.get_total_flops() > 0
    return macs(graph), counter.get_total_flops() / 2


@pytest.mark.parametrize("name", NETWORKS)
def test_the_count_is_half_of_what_torch_counts(sandbox: Sandbox, name: str) -> None:
    init, forward = NETWORKS[name]
    counted, expected = counts(sandbox, network(init=init, forward=forward))
    assert counted == expected


@pytest.mark.parametrize("seed", range(6))
def test_networks_of_the_grammar_are_counted_as_torch_does(sandbox: Sandbox, seed: int) -> None:
    """Skip connections, branches, depthwise convolutions and gates, in one network or another."""
    code = write_network(seed, shape=SHAPE, classes=CLASSES, max_params=200_000)
    counted, expected = counts(sandbox, code)
    assert counted == expected


def test_an_lstm_is_counted_step_by_step(sandbox: Sandbox) -> None:
    """Torch's counter does not see into the LSTM of a CPU; four gates, each of 16 steps."""
    plain, _ = counts(sandbox, network())
    code = network(
        init="self.r = nn.LSTM(16, 16, batch_first=True)",
        forward="x = x + self.r(x.mean(1))[0].unsqueeze(1)",
    )
    counted, _ = counts(sandbox, code)
    assert plain is not None
    assert counted == plain + 16 * 4 * 16 * (16 + 16)


@pytest.mark.parametrize(
    "forward",
    [
        "t = x.mean(1); x = x + torch.cdist(t, t).unsqueeze(1)",
        "x = x + torch.fft.rfft(x).abs().mean()",
        "t = x.mean(1); x = x + nn.functional.bilinear(t, t, x.new_ones(16, 16, 16)).unsqueeze(1)",
    ],
)
def test_a_traced_operator_that_cannot_be_counted_makes_the_count_unknown(
    sandbox: Sandbox, forward: str
) -> None:
    verdict, graph = sandbox.trace(network(forward=forward), shape=SHAPE, classes=CLASSES)
    assert graph is not None, verdict
    assert macs(graph) is None


def test_what_cannot_be_counted_is_unknown() -> None:
    node = ["lstm", [], [[["1N", 3], "float32"]]]
    assert macs({"nodes": [node], "output": [0, 0]}) is None
    assert macs({"nodes": [["relu", [], node[2]]], "output": [0, 0]}) == 0
