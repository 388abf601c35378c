"""Multiply-accumulates of traced networks beside those that torch counts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from archloop.config import SandboxConfig
from archloop.novelty.macs import macs
from archloop.sandbox import Sandbox
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


@pytest.mark.parametrize("name", NETWORKS)
def test_the_count_is_half_of_what_torch_counts(sandbox: Sandbox, name: str) -> None:
    init, forward = NETWORKS[name]
    code = network(init=init, forward=forward)
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
    assert macs(graph) == counter.get_total_flops() / 2


def test_what_cannot_be_counted_is_unknown() -> None:
    node = ["lstm", [], [[["1N", 3], "float32"]]]
    assert macs({"nodes": [node], "output": [0, 0]}) is None
    assert macs({"nodes": [["relu", [], node[2]]], "output": [0, 0]}) == 0
