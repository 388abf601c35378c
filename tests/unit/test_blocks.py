"""The building blocks that designs are written with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from archloop.blocks import (
    Add,
    Attention,
    Design,
    Gate,
    Join,
    Multiply,
    Skip,
    conv,
    depthwise,
    head,
    mix,
)

IMAGES = torch.randn(2, 8, 12, 12, generator=torch.Generator().manual_seed(0))


def out(layer: nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    layer(images)  # widths are inferred
    return layer.eval()(images)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (conv(), (2, 8, 12, 12)),
        (conv(16), (2, 16, 12, 12)),
        (conv(16, 5), (2, 16, 12, 12)),
        (conv(16, stride=2), (2, 16, 6, 6)),
        (conv(kernel=(1, 7)), (2, 8, 12, 12)),
        (conv(groups=4, dilation=2), (2, 8, 12, 12)),
        (depthwise(), (2, 8, 12, 12)),
        (depthwise(7, stride=2), (2, 8, 6, 6)),
        (mix(), (2, 8, 12, 12)),
        (mix(3), (2, 3, 12, 12)),
        (Join(nn.Identity(), conv(4)), (2, 12, 12, 12)),
        (Attention(2), (2, 8, 12, 12)),
        (head(10), (2, 10)),
    ],
)
def test_shapes(layer: nn.Module, shape: tuple[int, ...]) -> None:
    assert out(layer).shape == shape


def test_a_convolution_becomes_torch_s_own_with_the_groups_that_were_asked_for() -> None:
    for layer, groups in ((conv(16, groups=2), 2), (depthwise(), 8)):
        out(layer)
        first = next(layer.children())
        assert type(first) is nn.Conv2d
        assert first.groups == groups
        assert first.bias is None


def test_sums_products_and_gates() -> None:
    layer = mix()
    mixed = out(layer)
    assert torch.equal(Skip(layer)(IMAGES), IMAGES + mixed)
    assert torch.equal(Gate(layer)(IMAGES), IMAGES * mixed.sigmoid())
    assert torch.equal(Add(layer, nn.Identity())(IMAGES), mixed + IMAGES)
    assert torch.equal(Multiply(layer, nn.Identity())(IMAGES), mixed * IMAGES)


def test_attention_is_torch_s() -> None:
    layer = Attention(2)
    out(layer)
    mha = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    parts = [layer.query, layer.key, layer.value]
    with torch.no_grad():
        mha.in_proj_weight.copy_(torch.cat([p.weight.flatten(1) for p in parts]))
        mha.out_proj.weight.copy_(layer.out.weight.flatten(1))
    positions = IMAGES.flatten(2).transpose(1, 2)
    expected, _ = mha(positions, positions, positions)
    found = layer(IMAGES).flatten(2).transpose(1, 2)
    assert torch.allclose(found, expected, atol=1e-5)


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(RuntimeError, match="unflatten"):
        out(Attention(3))


class Net(Design):
    def layers(self, classes: int) -> list[nn.Module]:
        return [conv(16), Skip(conv()), nn.MaxPool2d(2), head(classes)]


def test_a_design_learns_under_the_contract() -> None:
    torch.manual_seed(0)
    net = Net((1, 8, 12, 12), (2,), {}, torch.device("cpu"))
    labels = torch.tensor([0, 1])
    net(IMAGES)
    net.train_setup({"lr": 0.1, "momentum": 0.9})
    net.learn([(IMAGES, labels)] * 20)
    assert net.eval()(IMAGES).argmax(1).tolist() == [0, 1]
