"""Structural edits of a network's source: each changes one thing about what the network is.

An edit takes a chain of layers and gives another, or nothing where the chain has no place for it.
What it claims (:attr:`Edit.claim`) is checked afterwards on the traced graphs
(:mod:`archloop.code.edits.verify`); an edit may be wrong about shapes that only a trace knows.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from archloop.code.edits.chains import Chain, call, called, expression
from archloop.code.edits.conv_block import Conv

Layers = Sequence[ast.expr]
Change = Callable[[Layers, random.Random], list[ast.expr] | None]

ACTIVATIONS = ("ReLU", "GELU", "SiLU", "Hardswish", "LeakyReLU", "ELU", "Mish")
_KERNELS = (1, 3, 5, 7)
_GROUPS = (2, 4, 8)
_LONGEST = 3
"""Most layers that a skip connection goes around."""
_POOLS = frozenset({"MaxPool2d", "AvgPool2d"})
_WEIGHTED = frozenset({"conv", "depthwise", "Conv2d", "LazyConv2d", "Attention"})
_NORMS = ("BatchNorm2d", "LazyBatchNorm2d", "GroupNorm")
_SHAPELESS = frozenset(
    {*ACTIVATIONS, "BatchNorm2d", "LazyBatchNorm2d", "GroupNorm", "Dropout", "Dropout2d", "Gate"}
    | {"Skip", "Attention", "Identity"}
)
"""Layers that surely keep the shape."""
_SQUEEZES = (
    "Gate(nn.AdaptiveAvgPool2d(1), mix())",
    "Gate(mix(1))",
    "Gate(depthwise(7), mix(1))",
)
"""Gates by channel (squeeze-and-excitation without a bottleneck), and by position."""


@dataclass(frozen=True)
class Edit:
    """One kind of edit."""

    name: str
    instruction: str
    """What an LLM is asked for, in words."""
    change: Change
    claim: Mapping[str, int] = field(default_factory=dict)
    """Measures of the structure profile that grow (1), shrink (-1) or stay (0); none: nothing is
    checked but that the child builds."""
    everywhere: bool = False
    """Whether it changes every chain, in the same way."""


def _places(layers: Layers, rng: random.Random, *names: str) -> list[int]:
    """Positions of the layers that are called so, in random order."""
    found = [i for i, layer in enumerate(layers) if called(layer) in names]
    rng.shuffle(found)
    return found


def _spliced(layers: Layers, start: int, stop: int, new: Layers) -> list[ast.expr]:
    return [*layers[:start], *new, *layers[stop:]]


def _keeps_shape(layer: ast.expr) -> bool:
    """Whether a layer surely, or for all that is written, keeps the shape of what it takes."""
    conv = Conv.read(layer)
    if conv is not None:
        return conv.keeps_width and (conv.is_plain or (conv.is_block and _has_stride_1(conv)))
    if called(layer) == "depthwise":
        return "stride" not in ast.unparse(layer)
    return called(layer) in _SHAPELESS


def _has_stride_1(conv: Conv) -> bool:
    return conv.number("stride") == 1


def _is_first(layers: Layers, place: int) -> bool:
    """Whether a layer may be the first of the network, which takes the image itself."""
    return place == 0 and len(layers) > 1


def _add_residual(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    inner = rng.choice(("conv()", "conv(), conv()", "depthwise(), conv(kernel=1)"))
    for i in _ends_of_layers(layers, rng):
        return _spliced(layers, i, i, [expression(f"Skip({inner})")])
    return None


def _ends_of_layers(layers: Layers, rng: random.Random) -> list[int]:
    """Places behind a convolution with its normalisation and activation, in random order."""
    found = []
    for i in _places(layers, rng, *_WEIGHTED - {"Attention"}, "Skip", "Join", "Add"):
        end = i + 1
        while end < len(layers) and called(layers[end]) in (*ACTIVATIONS, *_NORMS):
            end += 1
        found.append(end)
    return found


def _add_skip(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    runs = [
        (start, stop)
        for start in range(len(layers))
        for stop in range(start + 1, min(start + _LONGEST, len(layers)) + 1)
        if all(map(_keeps_shape, layers[start:stop]))
        and any(called(layer) in _WEIGHTED for layer in layers[start:stop])
    ]
    if not runs:
        return None
    start, stop = rng.choice(runs)
    return _spliced(layers, start, stop, [call("Skip", *layers[start:stop])])


def _remove_skip(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    for i in _places(layers, rng, "Skip"):
        skip = layers[i]
        assert isinstance(skip, ast.Call)
        return _spliced(layers, i, i + 1, skip.args)
    return None


def _separate(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    for i in _places(layers, rng, "conv", "Conv2d"):
        conv = Conv.read(layers[i])
        if conv is None or not conv.kernel or conv.kernel < 3 or _is_first(layers, i):
            continue
        if conv.is_block:
            if conv.number("groups") != 1:
                continue
            written = [f"kernel={conv.kernel}"] * (conv.kernel != 3)
            written += [f"{k}={ast.unparse(conv.arguments[k])}" for k in _MOVED if _has(conv, k)]
            depth = expression(f"depthwise({', '.join(written)})")
            point = conv.with_(kernel=1, stride=None, dilation=None)
        else:
            if "groups" in conv.arguments or "in_channels" not in conv.arguments:
                continue
            if conv.number("dilation") != 1:
                continue
            inputs = ast.unparse(conv.arguments["in_channels"])
            depth = conv.with_(out_channels=inputs, groups=inputs).write()
            point = conv.with_(kernel_size=1, stride=None, padding=None, dilation=None)
        return _spliced(layers, i, i + 1, [depth, point.write()])
    return None


_MOVED = ("stride", "dilation", "act")
"""What the spatial half of a separated convolution takes over."""


def _has(conv: Conv, name: str) -> bool:
    return name in conv.arguments


def _group(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    for i in _places(layers, rng, "conv", "Conv2d"):
        conv = Conv.read(layers[i])
        if conv is None or _is_first(layers, i) or not conv.is_plain or conv.kernel == 1:
            continue
        groups = rng.choice(_GROUPS)
        if (conv.width or 0) % groups == 0:
            return _spliced(layers, i, i + 1, [conv.with_(groups=groups).write()])
    return None


def _add_gate(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    for i in _ends_of_layers(layers, rng):
        return _spliced(layers, i, i, [expression(rng.choice(_SQUEEZES))])
    return None


def _branch(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    for i in _places(layers, rng, "conv", "Conv2d"):
        conv = Conv.read(layers[i])
        if conv is None or conv.kernel is None or not conv.is_plain or _is_first(layers, i):
            continue
        other = conv.sized(rng.choice([k for k in _KERNELS if k != conv.kernel]))
        if conv.width is None:
            return _spliced(layers, i, i + 1, [call("Add", conv.write(), other.write())])
        if conv.width % 4:
            continue
        first = rng.choice((conv.width // 2, conv.width // 4))
        halves = [other.with_(**{conv.out: first}), conv.with_(**{conv.out: conv.width - first})]
        return _spliced(layers, i, i + 1, [call("Join", *(h.write() for h in halves))])
    return None


def _densify(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    for i in _places(layers, rng, "conv"):
        conv = Conv.read(layers[i])
        if conv is None or i == 0 or conv.number("stride") != 1:
            continue
        growth = conv.with_(width=rng.choice((8, 16, 24, 32)))
        joined = call("Join", expression("nn.Identity()"), growth.write())
        return _spliced(layers, i + 1, i + 1, [joined])
    return None


def _multiply(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    for i in _places(layers, rng, "conv", "Conv2d"):
        conv = Conv.read(layers[i])
        if conv is None or _is_first(layers, i) or _has(conv, "act"):
            continue
        if conv.is_block:
            gate = conv.with_(act="nn.Sigmoid").write()
        else:
            gate = call("nn.Sequential", conv.write(), expression("nn.Sigmoid()"))
        return _spliced(layers, i, i + 1, [call("Multiply", conv.write(), gate)])
    return None


def _attend(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    pools = [i for i, layer in enumerate(layers) if _halves(layer)]
    for i in _places(layers, rng, "conv", "Skip", "Gate"):
        if sum(pool < i for pool in pools) < 2:
            continue  # too many positions
        heads = rng.choice(("", "2", "8"))
        return _spliced(layers, i + 1, i + 1, [expression(f"Skip(Attention({heads}))")])
    return None


def _halves(layer: ast.expr) -> bool:
    conv = Conv.read(layer)
    strided = conv is not None and conv.number("stride") == 2
    return called(layer) in _POOLS or strided or "stride=2" in ast.unparse(layer)


def _invert(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    for i in _places(layers, rng, "conv"):
        conv, width = Conv.read(layers[i]), _width_before(layers, i)
        if conv is None or not width or not _keeps_shape(layers[i]) or not conv.is_plain:
            continue
        wide = conv.with_(width=rng.choice((2, 3, 4)) * width, kernel=1).write()
        depth = f"depthwise({conv.kernel})" if conv.kernel != 3 else "depthwise()"
        narrow = expression(f"conv({width}, 1)")
        return _spliced(layers, i, i + 1, [call("Skip", wide, expression(depth), narrow)])
    return None


def _width_before(layers: Layers, place: int) -> int | None:
    """Channels that a layer of the chain gets, where they are written."""
    for layer in reversed(layers[:place]):
        conv = Conv.read(layer)
        if conv is not None and conv.width:
            return conv.width
        if not _keeps_shape(layer) and called(layer) not in _POOLS:
            return None
    return None


def _dilate(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    for i in _places(layers, rng, "conv", "Conv2d"):
        conv = Conv.read(layers[i])
        if conv is not None and conv.is_plain and conv.kernel and conv.kernel > 1:
            return _spliced(layers, i, i + 1, [conv.sized(conv.kernel, dilation=2).write()])
    return None


def _factor(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    for i in _places(layers, rng, "conv", "Conv2d"):
        conv = Conv.read(layers[i])
        if conv is None or not conv.kernel or conv.kernel < 3 or not conv.is_plain:
            continue
        first, second = conv.sized((1, conv.kernel)), conv.sized((conv.kernel, 1))
        if conv.is_block:
            second = second.with_(width=None)
        elif "in_channels" in conv.arguments and "out_channels" in conv.arguments:
            second = second.with_(in_channels=ast.unparse(conv.arguments["out_channels"]))
        else:
            continue
        return _spliced(layers, i, i + 1, [first.write(), second.write()])
    return None


def _deepen(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    for i in _places(layers, rng, "conv", "Skip"):
        conv = Conv.read(layers[i])
        new = layers[i] if conv is None else conv.with_(width=None, stride=None).write()
        return _spliced(layers, i + 1, i + 1, [new])
    for i in _ends_of_layers(layers, rng):
        return _spliced(layers, i, i, [expression("conv()")])
    return None


def _add_stage(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    for i in _places(layers, rng, "head", "AdaptiveAvgPool2d"):
        width = rng.choice((64, 96, 128))
        return _spliced(layers, i, i, [expression("nn.MaxPool2d(2)"), expression(f"conv({width})")])
    return None


def _drop_stage(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    pools = [i for i, layer in enumerate(layers) if _halves(layer)]
    if len(pools) < 3:
        return None
    ends = [i for i, layer in enumerate(layers) if called(layer) in ("head", "AdaptiveAvgPool2d")]
    stages = [(p, min([q for q in (*pools, *ends) if q > p], default=p)) for p in pools[1:]]
    stages = [(p, q) for p, q in stages if any(called(x) in _WEIGHTED for x in layers[p:q])]
    return _spliced(layers, *rng.choice(stages), []) if stages else None


def _pool_to_stride(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    for i in _places(layers, rng, *_POOLS):
        place = i - 1
        while place > 0 and called(layers[place]) in (*ACTIVATIONS, *_NORMS):
            place -= 1
        conv = Conv.read(layers[place]) if place >= 0 else None
        if conv is not None and conv.number("stride") == 1 and conv.number("dilation") == 1:
            strided = conv.with_(stride=2).write()
            return _spliced(layers, place, i + 1, [strided, *layers[place + 1 : i]])
    return None


def _global_head(layers: Layers, rng: random.Random) -> list[ast.expr] | None:  # noqa: ARG001
    for i, layer in enumerate(layers):
        if called(layer) == "Flatten" and i + 1 < len(layers):
            last = layers[-1]
            if called(last) in _LINEAR and isinstance(last, ast.Call) and last.args:
                start = i - (i > 0 and called(layers[i - 1]) == "AdaptiveAvgPool2d")
                return [*layers[:start], call("head", last.args[-1])]
    if not layers:
        return None
    last = layers[-1]
    if called(last) == "Linear" and isinstance(last, ast.Call) and len(last.args) == 2:
        return [call("nn.LazyLinear", last.args[1])]
    return [
        expression("nn.AdaptiveAvgPool2d(1)") if called(layer) == "AdaptiveAvgPool2d" else layer
        for layer in layers
    ]


_LINEAR = ("LazyLinear", "Linear")


def _widen(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    return _scaled(layers, rng, (1.5, 2.0))


def _narrow(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    return _scaled(layers, rng, (0.5, 0.75))


def _scaled(layers: Layers, rng: random.Random, factors: Sequence[float]) -> list[ast.expr] | None:
    factor, new, found = rng.choice(factors), [*layers], False
    for i, layer in enumerate(layers):
        conv = Conv.read(layer)
        if conv is not None and conv.is_block and conv.width:
            width = max(8, round(conv.width * factor / 8) * 8)
            found |= width != conv.width
            new[i] = conv.with_(width=width).write()
    return new if found else None


def _activate(layers: Layers, rng: random.Random) -> list[ast.expr] | None:
    new, found = [*layers], False
    chosen = rng.choice(ACTIVATIONS[1:])
    for i, layer in enumerate(layers):
        conv = Conv.read(layer)
        if conv is not None and conv.is_block and not _has(conv, "act") and conv.number("groups"):
            new[i], found = conv.with_(act=f"nn.{chosen}").write(), True
        elif called(layer) in ACTIVATIONS and called(layer) != chosen:
            new[i], found = expression(f"nn.{chosen}()"), True
    return new if found else None


EDITS: dict[str, Edit] = {
    edit.name: edit
    for edit in (
        Edit("add_skip", "Add a skip connection.", _add_skip, {"skips": 1}),
        Edit("add_residual", "Add a residual block.", _add_residual, {"skips": 1, "depth": 1}),
        Edit("remove_skip", "Remove a skip connection.", _remove_skip, {"skips": -1}),
        Edit(
            "separate",
            "Replace a convolution by a depthwise-separable one.",
            _separate,
            {"depthwise_convs": 1},
        ),
        Edit("group", "Split a convolution into groups.", _group, {"grouped_convs": 1}),
        Edit("add_gate", "Add a gate.", _add_gate, {"gates": 1}),
        Edit("branch", "Split a convolution into two branches.", _branch, {}),
        Edit("densify", "Join the input of a layer to its output.", _densify, {"joins": 1}),
        Edit("multiply", "Multiply two branches.", _multiply, {"gates": 1}),
        Edit("attend", "Add self-attention.", _attend, {"attentions": 1}),
        Edit(
            "invert",
            "Replace a convolution by an inverted bottleneck.",
            _invert,
            {"depthwise_convs": 1, "skips": 1},
        ),
        Edit("dilate", "Dilate a convolution.", _dilate, {"dilated_convs": 1}),
        Edit(
            "factor",
            "Replace a convolution by two asymmetric ones.",
            _factor,
            {"asymmetric_convs": 1},
        ),
        Edit("deepen", "Make the network deeper.", _deepen, {"depth": 1}),
        Edit("add_stage", "Add a stage at half the resolution.", _add_stage, {"depth": 1}),
        Edit("drop_stage", "Drop a stage.", _drop_stage, {"depth": -1}),
        Edit(
            "pool_to_stride", "Replace a pooling layer by a stride.", _pool_to_stride, {"depth": 0}
        ),
        Edit(
            "global_head",
            "Replace the linear head by global pooling.",
            _global_head,
            {"linear_share": -1},
            everywhere=True,
        ),
        Edit("widen", "Make the network wider.", _widen, {"n_params": 1}, True),
        Edit("narrow", "Make the network narrower.", _narrow, {"n_params": -1}, True),
        Edit("activate", "Use another activation.", _activate, {"n_params": 0}, True),
    )
}
"""Every edit by its name."""


def _weighted(chain: Chain) -> int:
    """Convolutions and blocks in a chain."""
    return sum(called(layer) in (*_WEIGHTED, "Skip", "Gate") for layer in chain.layers)


def apply(edit: Edit, found: Sequence[Chain], rng: random.Random) -> bool:
    """Apply an edit to one chain, those with most convolutions first; whether it found a place."""
    if edit.everywhere:
        state, changed = rng.getstate(), False
        for chain in found:
            rng.setstate(state)  # the same choices
            if (new := edit.change(chain.layers, rng)) is not None:
                chain.replace(new)
                changed = True
        return changed
    order = sorted(found, key=lambda chain: (-_weighted(chain), rng.random()))
    for chain in order:
        new = edit.change(chain.layers, rng)
        if new is not None:
            chain.replace(new)
            return True
    return False
