"""Networks in one uniform idiom: plain stacks of blocks, and structural edits of these.

A plain network is a chain of convolutions of :mod:`archloop.blocks` with two to four halvings of
the image; then none to six edits of :mod:`archloop.code.edits` are applied to it. A small LLM
learns from uniform code, and LEMUR has few networks with structure that fit into a small budget.
"""

from __future__ import annotations

import random

from archloop.code.edits import EDITS, edited
from archloop.code.linking import linked, unlinked

VERSION = 1
"""Increased when the same seed gives other networks than before."""
_STEMS = (16, 24, 32, 48, 64)
_WIDTHS = (24, 32, 48, 64, 80, 96, 128, 160)
_MOST_EDITS = 6
_CHAIN = "from archloop.blocks import *\n\nclass Net(Design):\n\n    def layers(self, classes):\n"


def design(rng: random.Random) -> tuple[str, list[str]]:
    """A network and the names of the edits that made it of a plain one, sorted."""
    source, applied = linked(plain(rng)), []
    for _ in range(rng.randint(0, _MOST_EDITS)):
        edit = EDITS[rng.choice([*EDITS])]
        if (found := edited(source, edit, rng)) is not None:
            source = found
            applied.append(edit.name)
    return source, sorted(set(applied))


def plain(rng: random.Random) -> str:
    """A plain chain: a stem, stages of growing width, a head; it imports the blocks."""
    stem = rng.choice(_STEMS)
    layers = [_conv(stem, rng.choice((3, 3, 3, 5)), rng.choice((1, 1, 1, 2)))]
    width = stem
    for stage in range(rng.choice((2, 3, 3, 4))):
        width = rng.choice([w for w in _WIDTHS if width <= w <= 2 * width] or [width])
        match rng.choice(("max", "max", "average", "stride", "stride")):
            case "max":
                layers += ["nn.MaxPool2d(2)", _conv(width)]
            case "average":
                layers += ["nn.AvgPool2d(2)", _conv(width)]
            case _:
                layers.append(_conv(width, stride=2))
        layers += ["conv()"] * rng.choice((0, 0, 1, 1, 2) if stage else (0, 0, 1))
    if rng.random() < 0.7:
        layers.append("head(classes)")
    else:
        hidden = rng.choice((64, 128))
        layers += ["nn.AdaptiveAvgPool2d(2)", "nn.Flatten()", f"nn.LazyLinear({hidden})"]
        layers += ["nn.ReLU()", "nn.LazyLinear(classes)"]
    return unlinked(linked(f"{_CHAIN}        return [{', '.join(layers)}]\n"))


def _conv(width: int, kernel: int = 3, stride: int = 1) -> str:
    kernel_text = "" if kernel == 3 else f", {kernel}"
    return f"conv({width}{kernel_text}{'' if stride == 1 else f', stride={stride}'})"
