"""Building blocks for networks, for people and LLMs: a design is a list of layers.

A network written with them is short, and few of its numbers have to agree: widths are inferred at
the first forward pass, and a width that is left out stays what it is. Where an answer of an LLM or
a file imports from this module, :mod:`archloop.code.linking` puts the definitions in the place of
the import, so that every network is a single file.

    from archloop.blocks import *

    class Net(Design):
        def layers(self, classes):
            return [conv(32), nn.MaxPool2d(2), Skip(conv(), conv()), head(classes)]

Images are (N, C, H, W) float tensors. The contract's training is that of LEMUR's networks: plain
cross-entropy and SGD.
"""

import torch
import torch.nn as nn


def supported_hyperparameters():
    """What ``prm`` holds."""
    return {"lr", "momentum"}


class LazyConv(nn.LazyConv2d):
    """A convolution that keeps the image size (odd kernels, stride 1), without bias.

    Args:
        width: Output channels; ``None``: as many as come in.
        kernel: One size, or (height, width).
        stride: As of ``nn.Conv2d``.
        groups: As of ``nn.Conv2d``; ``None``: as many as channels come in (depthwise).
        dilation: As of ``nn.Conv2d``.
    """

    cls_to_become = nn.Conv2d

    def __init__(self, width, kernel, stride=1, groups=1, dilation=1):
        sides = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
        padding = tuple(dilation * (side - 1) // 2 for side in sides)
        super().__init__(width or 0, sides, stride, padding, dilation, groups or 1, bias=False)
        self.groups = groups

    def initialize_parameters(self, input):
        """Take what is missing from the first input, (N, C, H, W)."""
        self.groups = self.groups or input.shape[1]
        self.out_channels = self.out_channels or input.shape[1]
        super().initialize_parameters(input)


def conv(width=None, kernel=3, stride=1, groups=1, dilation=1, act=nn.ReLU):
    """Convolution, batch normalisation, activation; ``width=None`` keeps the channels."""
    return nn.Sequential(
        LazyConv(width, kernel, stride, groups, dilation), nn.LazyBatchNorm2d(), act()
    )


def depthwise(kernel=3, stride=1, dilation=1, act=nn.ReLU):
    """A convolution of each channel by itself, batch normalisation, activation."""
    return nn.Sequential(
        LazyConv(None, kernel, stride, None, dilation), nn.LazyBatchNorm2d(), act()
    )


def mix(width=None):
    """A 1 x 1 convolution alone; ``width=None`` keeps the channels."""
    return LazyConv(width, 1)


def head(classes):
    """Logits (N, classes) from the mean over the image."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(classes))


class Skip(nn.Sequential):
    """``x + layers(x)``; the layers keep the shape."""

    def forward(self, x):
        """(N, C, H, W) to the same shape."""
        return x + super().forward(x)


class Gate(nn.Sequential):
    """``x * sigmoid(layers(x))``; the layers give the shape of ``x`` or (N, C or 1, 1 or H, ...).

    Squeeze-and-excitation is ``Gate(nn.AdaptiveAvgPool2d(1), mix())``.
    """

    def forward(self, x):
        """(N, C, H, W) to the same shape."""
        return x * torch.sigmoid(super().forward(x))


class Join(nn.ModuleList):
    """The channels of all branches of ``x``, one behind the other."""

    def __init__(self, *branches):
        super().__init__(branches)

    def forward(self, x):
        """(N, C, H, W) to (N, sum of channels, H', W')."""
        return torch.cat([branch(x) for branch in self], 1)


class Add(nn.ModuleList):
    """The sum of all branches of ``x``, which have one shape."""

    def __init__(self, *branches):
        super().__init__(branches)

    def forward(self, x):
        """(N, C, H, W) to (N, C', H', W')."""
        return sum(branch(x) for branch in self)


class Multiply(nn.ModuleList):
    """The product of two branches of ``x``, which have one shape."""

    def __init__(self, first, second):
        super().__init__([first, second])

    def forward(self, x):
        """(N, C, H, W) to (N, C', H', W')."""
        return self[0](x) * self[1](x)


class Attention(nn.Module):
    """Self-attention over the positions of an image; ``heads`` divides the channels."""

    def __init__(self, heads=4):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = mix(), mix(), mix()
        self.out = mix()

    def forward(self, x):
        """(N, C, H, W) to the same shape, in O((H W)^2)."""
        parts = (self.query(x), self.key(x), self.value(x))
        query, key, value = (part.flatten(2).unflatten(1, (self.heads, -1)) for part in parts)
        scores = query.transpose(2, 3) @ key / query.shape[2] ** 0.5
        mixed = value @ scores.softmax(-1).transpose(2, 3)
        return self.out(mixed.reshape(x.shape))


class Design(nn.Module):
    """A network as a list of layers, with the training that the candidate contract asks for.

    A subclass ``Net`` gives the layers.
    """

    def __init__(self, in_shape, out_shape, prm, device):  # noqa: ARG002 - of the contract
        super().__init__()
        self.device = device
        self.chain = nn.Sequential(*self.layers(out_shape[0]))

    def forward(self, x):
        """(N, C, H, W) to logits (N, classes)."""
        return self.chain(x)

    def train_setup(self, prm):
        """Loss and optimiser; ``prm`` has ``lr`` and ``momentum``."""
        self.to(self.device)
        self.criteria = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.parameters(), lr=prm["lr"], momentum=prm["momentum"])

    def learn(self, train_data):
        """One pass over batches of (images, labels)."""
        self.train()
        for inputs, labels in train_data:
            inputs, labels = inputs.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            loss = self.criteria(self(inputs), labels)
            loss.backward()
            self.optimizer.step()
