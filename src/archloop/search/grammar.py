"""A small grammar of convolutional networks: the random baseline draws from it uniformly.

A network is a stem, a sequence of blocks with a way to halve the image after some of them, and a
head. Blocks are plain convolutions, skip connections around two convolutions, concatenated
branches, depthwise-separable convolutions and gated convolutions. Every choice is uniform. Designs
above the parameter budget are drawn again, as they come, up to a fixed number of times, then the
widths are halved until the design fits; sizes are counted in closed form, without torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from archloop.errors import UsageError

Kind = Literal["conv", "residual", "branches", "depthwise", "gate"]
Downsampling = Literal["none", "max", "average", "stride"]

_KINDS: tuple[Kind, ...] = ("conv", "residual", "branches", "depthwise", "gate")
_DOWN: tuple[Downsampling, ...] = ("max", "average", "stride")
_WIDTHS = (16, 24, 32, 48, 64, 96, 128)
_KERNELS = (3, 5)
_ACTIVATIONS = ("ReLU", "GELU", "SiLU", "Hardswish")
_BLOCKS = range(2, 8)
_LEAST_SIDE = 4
"""The image is not halved below this many pixels a side."""
_TRIES = 100
"""Designs drawn until one fits into the budget."""
_FLAT_SIDE = 2
"""Pixels a side that a flattening head pools to."""


@dataclass(frozen=True)
class Block:
    """One block, and what halves the image after it."""

    kind: Kind
    width: int
    """Channels that it gives."""
    kernel: int
    down: Downsampling


@dataclass(frozen=True)
class Design:
    """A network of the grammar."""

    channels: int
    classes: int
    stem: int
    """Channels of the first convolution."""
    blocks: tuple[Block, ...]
    activation: str
    flat_head: bool
    """Flatten a pooled map of 2 x 2 in place of global average pooling."""


def write_network(seed: int, *, shape: tuple[int, int, int], classes: int, max_params: int) -> str:
    """A network that keeps the candidate contract, decided by the seed alone.

    Args:
        seed: Of the draw.
        shape: (channels, height, width) of an image.
        classes: Number of logits.
        max_params: Parameter budget.

    Returns:
        Python source.

    Raises:
        UsageError: Not even the smallest network of the grammar fits into the budget.
    """
    return render(draw(random.Random(seed), shape, classes, max_params))


def draw(rng: random.Random, shape: tuple[int, int, int], classes: int, max_params: int) -> Design:
    """A uniformly drawn design within the budget; see :func:`write_network`."""
    design = _any_design(rng, shape, classes)
    for _ in range(_TRIES):
        if count_params(design) <= max_params:
            return design
        design = _any_design(rng, shape, classes)
    while count_params(design) > max_params:
        smaller = _halved(design)
        if smaller == design:
            raise UsageError(
                f"task.max_params: {max_params:,}; the smallest network of the grammar has "
                f"{count_params(design):,} parameters"
            )
        design = smaller
    return design


def _any_design(rng: random.Random, shape: tuple[int, int, int], classes: int) -> Design:
    blocks: list[Block] = []
    side = min(shape[1:])
    for _ in range(rng.choice(_BLOCKS)):
        may_halve = side >= 2 * _LEAST_SIDE
        down = rng.choice(_DOWN) if may_halve and rng.random() < 0.5 else "none"
        side = side // 2 if down != "none" else side
        kind, width, kernel = rng.choice(_KINDS), rng.choice(_WIDTHS), rng.choice(_KERNELS)
        blocks.append(Block(kind, width, kernel, down))
    return Design(
        channels=shape[0],
        classes=classes,
        stem=rng.choice(_WIDTHS),
        blocks=tuple(blocks),
        activation=rng.choice(_ACTIVATIONS),
        flat_head=side >= _FLAT_SIDE and rng.random() < 0.5,
    )


def _halved(design: Design) -> Design:
    """The same design with half the widths, which stay even; then with fewer blocks."""
    if design.stem > 2 or any(block.width > 2 for block in design.blocks):
        blocks = tuple(replace(b, width=_half(b.width)) for b in design.blocks)
        return replace(design, stem=_half(design.stem), blocks=blocks)
    if len(design.blocks) > 1:
        return replace(design, blocks=design.blocks[:1])
    return replace(design, flat_head=False)


def _half(width: int) -> int:
    return max(2, width // 4 * 2)


def count_params(design: Design) -> int:
    """Trainable parameters of the network that :func:`render` writes, in closed form."""
    total = _conv_block(design.channels, design.stem, 3)
    width = design.stem
    for block in design.blocks:
        total += _block(block, width)
        width = block.width
    features = width * (_FLAT_SIDE**2 if design.flat_head else 1)
    return total + (features + 1) * design.classes


def _conv_block(inputs: int, outputs: int, kernel: int) -> int:
    """A convolution without bias, and the scale and shift of its normalisation."""
    return inputs * outputs * kernel**2 + 2 * outputs


def _block(block: Block, inputs: int) -> int:
    width, kernel = block.width, block.kernel
    match block.kind:
        case "conv":
            return _conv_block(inputs, width, kernel)
        case "residual":
            shortcut = 0 if inputs == width else _conv_block(inputs, width, 1)
            main = _conv_block(inputs, width, kernel) + _conv_block(width, width, kernel)
            return main + shortcut
        case "branches":
            half = width // 2
            return _conv_block(inputs, half, 1) + _conv_block(inputs, width - half, kernel)
        case "depthwise":
            return inputs * kernel**2 + 2 * inputs + _conv_block(inputs, width, 1)
        case "gate":
            return _conv_block(inputs, width, kernel) + (width + 1) * width


_HEADING = "import torch\nimport torch.nn as nn"
_HYPERPARAMETERS = "def supported_hyperparameters():\n    return {'lr', 'momentum'}"
_CONV_BLOCK = """class ConvBlock(nn.Module):

    def __init__(self, inputs, outputs, kernel, stride=1, groups=1):
        super().__init__()
        padding = kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = nn.$ACT()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))"""
_CLASSES: dict[Kind, str] = {
    "residual": """class Residual(nn.Module):

    def __init__(self, inputs, outputs, kernel, stride=1):
        super().__init__()
        self.first = ConvBlock(inputs, outputs, kernel, stride)
        self.second = ConvBlock(outputs, outputs, kernel)
        self.shortcut = nn.Identity() if inputs == outputs else ConvBlock(inputs, outputs, 1)
        self.pool = nn.Identity() if stride == 1 else nn.AvgPool2d(stride, ceil_mode=True)

    def forward(self, x):
        return self.second(self.first(x)) + self.shortcut(self.pool(x))""",
    "branches": """class Branches(nn.Module):

    def __init__(self, inputs, outputs, kernel, stride=1):
        super().__init__()
        half = outputs // 2
        self.narrow = ConvBlock(inputs, half, 1, stride)
        self.wide = ConvBlock(inputs, outputs - half, kernel, stride)

    def forward(self, x):
        return torch.cat([self.narrow(x), self.wide(x)], 1)""",
    "depthwise": """class Depthwise(nn.Module):

    def __init__(self, inputs, outputs, kernel, stride=1):
        super().__init__()
        self.spatial = ConvBlock(inputs, inputs, kernel, stride, groups=inputs)
        self.pointwise = ConvBlock(inputs, outputs, 1)

    def forward(self, x):
        return self.pointwise(self.spatial(x))""",
    "gate": """class Gate(nn.Module):

    def __init__(self, inputs, outputs, kernel, stride=1):
        super().__init__()
        self.block = ConvBlock(inputs, outputs, kernel, stride)
        self.weigh = nn.Linear(outputs, outputs)

    def forward(self, x):
        x = self.block(x)
        weights = torch.sigmoid(self.weigh(x.mean((2, 3))))
        return x * weights[:, :, None, None]""",
}
_NAMES: dict[Kind, str] = {
    "conv": "ConvBlock",
    "residual": "Residual",
    "branches": "Branches",
    "depthwise": "Depthwise",
    "gate": "Gate",
}
_POOLS = {"max": "nn.MaxPool2d(2)", "average": "nn.AvgPool2d(2)"}
_TRAINING = """    def train_setup(self, prm):
        self.to(self.device)
        self.criteria = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.parameters(), lr=prm['lr'], momentum=prm['momentum'])

    def learn(self, train_data):
        self.train()
        for inputs, labels in train_data:
            inputs, labels = (inputs.to(self.device), labels.to(self.device))
            self.optimizer.zero_grad()
            loss = self.criteria(self(inputs), labels)
            loss.backward()
            self.optimizer.step()"""


def render(design: Design) -> str:
    """The design as Python source, with the helper classes that it uses."""
    used = [kind for kind in _KINDS if any(block.kind == kind for block in design.blocks)]
    classes = [_CONV_BLOCK.replace("$ACT", design.activation)]
    classes += [_CLASSES[kind] for kind in used if kind in _CLASSES]
    head = f"nn.AdaptiveAvgPool2d({_FLAT_SIDE if design.flat_head else 1})"
    width = design.blocks[-1].width * (_FLAT_SIDE**2 if design.flat_head else 1)
    layers = [f"ConvBlock(in_shape[1], {design.stem}, 3)", *_layers(design.stem, design.blocks)]
    lines = "".join(f"            {layer},\n" for layer in [*layers, head, "nn.Flatten()"])
    net = f"""class Net(nn.Module):

    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.device = device
        self.features = nn.Sequential(
{lines}        )
        self.head = nn.Linear({width}, out_shape[0])

    def forward(self, x):
        return self.head(self.features(x))

{_TRAINING}"""
    return "\n\n".join([_HEADING, _HYPERPARAMETERS, *classes, net]) + "\n"


def _layers(inputs: int, blocks: Sequence[Block]) -> list[str]:
    """The blocks as expressions, with what halves the image between them."""
    layers: list[str] = []
    for block in blocks:
        stride = ", 2" if block.down == "stride" else ""
        layers.append(f"{_NAMES[block.kind]}({inputs}, {block.width}, {block.kernel}{stride})")
        if block.down in _POOLS:
            layers.append(_POOLS[block.down])
        inputs = block.width
    return layers
