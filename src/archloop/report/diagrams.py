"""Accepted networks as block diagrams, drawn from the layers that their source lists.

A layer is a box, layers one after the other stand below each other, branches side by side; a line
on the right goes around what a skip connection or a gate goes around. Layers that a network makes
in other ways than a list (:mod:`archloop.code.edits.chains`) are not drawn.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archloop.code.edits.chains import called, chains
from archloop.code.edits.conv_block import Conv
from archloop.code.linking import unlinked
from archloop.code.policy import parse
from archloop.corpus.seeds.balance import even
from archloop.novelty.structure import structure_class
from archloop.report.figures import drawing, svg
from archloop.types import Candidate, Outcome, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 24
"""Networks of a figure."""
_COLUMNS = 8
_BOX, _GAP, _STEP = 1.0, 0.10, 0.24
"""Width of a box, space between branches, height of a box with the space below it."""
_SIDE = 0.22
"""Room for the line of a skip connection or gate."""
_AROUND = {"Skip": "+", "Gate": "×"}
_PARALLEL = {"Join": "join", "Add": "+", "Multiply": "×"}
_COLOURS = {
    "conv": "#9ecae1",
    "depthwise": "#a1d99b",
    "mix": "#c6dbef",
    "pool": "#fdd0a2",
    "attention": "#dadaeb",
    "linear": "#fcbba1",
    "other": "#eeeeee",
}


@dataclass(frozen=True)
class Part:
    """A piece of a diagram."""

    label: str = ""
    colour: str = "other"
    children: tuple[Part, ...] = ()
    arrangement: str = "box"
    """``box``, ``chain`` (below each other), ``around`` (a chain with a line past it) or
    ``branches`` (side by side)."""

    @property
    def width(self) -> float:
        """In box widths."""
        widths = [child.width for child in self.children]
        match self.arrangement:
            case "box":
                return _BOX
            case "branches":
                return sum(widths) + _GAP * (len(widths) - 1)
            case "around":
                return max(widths, default=_BOX) + _SIDE
            case _:
                return max(widths, default=_BOX)

    @property
    def height(self) -> float:
        """In the same unit."""
        heights = [child.height for child in self.children]
        match self.arrangement:
            case "box":
                return _STEP
            case "branches":
                return max(heights, default=0.0) + _STEP
            case "around":
                return sum(heights) + _STEP / 2
            case _:
                return sum(heights)


def diagram(code: str) -> Part:
    """The diagram of a network; empty where its source lists no layers.

    >>> diagram("self.a = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())").children[0].label
    'conv 3 · 8'
    """
    tree = parse(unlinked(code))
    if isinstance(tree, Verdict):
        return Part(arrangement="chain")
    nested: set[int] = set()
    parts: list[Part] = []
    for chain in sorted(chains(tree), key=lambda c: (c.layers[0].lineno, c.layers[0].col_offset)):
        if id(chain.layers[0]) in nested:
            continue
        for layer in chain.layers:
            nested.update(map(id, ast.walk(layer)))
            parts.append(_part(layer))
    return Part(children=tuple(parts), arrangement="chain")


def _part(node: ast.expr) -> Part:
    name = called(node)
    if isinstance(node, ast.Call):
        if name == "Sequential":
            return Part(children=tuple(map(_part, node.args)), arrangement="chain")
        if name in _AROUND:
            inner = tuple(map(_part, node.args))
            return Part(_AROUND[name], children=inner, arrangement="around")
        if name in _PARALLEL:
            inner = tuple(map(_part, node.args))
            return Part(_PARALLEL[name], children=inner, arrangement="branches")
    return Part(*_named(node, name))


def _named(node: ast.expr, name: str) -> tuple[str, str]:
    """Label and colour of a single layer."""
    conv = Conv.read(node)
    if conv is not None:
        kernel = conv.arguments.get(conv.side)
        words = ["conv", "3" if kernel is None else ast.unparse(kernel).replace(" ", "")]
        if conv.number("stride") != 1:
            words.append("/2" if conv.number("stride") == 2 else "strided")
        if conv.number("groups") != 1:
            words.append(f"g{ast.unparse(conv.arguments['groups'])}")
        if conv.number("dilation") != 1:
            words.append(f"d{ast.unparse(conv.arguments['dilation'])}")
        width = conv.arguments.get(conv.out)
        return " ".join(words) + (f" · {ast.unparse(width)}" if width else ""), "conv"
    if name == "depthwise":
        assert isinstance(node, ast.Call)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        side = _arguments(node, keywords=False) or given.get("kernel", "3")
        stride = f" /{given['stride']}" if "stride" in given else ""
        return f"depthwise {side}{stride}", "depthwise"
    if name == "mix":
        return f"mix {_arguments(node)}".strip(), "mix"
    if "Pool" in name:
        return name.removesuffix("2d").replace("Adaptive", "").replace("Pool", " pool"), "pool"
    if "ttention" in name:
        return f"attention {_arguments(node)}".strip(), "attention"
    if "Linear" in name or name == "head":
        return name.removeprefix("Lazy").lower(), "linear"
    return name or ast.unparse(node)[:12], "other"


def _arguments(node: ast.expr, *, keywords: bool = True) -> str:
    assert isinstance(node, ast.Call)
    found = [*map(ast.unparse, node.args)]
    found += [ast.unparse(k.value) for k in node.keywords] if keywords else []
    return ",".join(found).replace(" ", "").replace("nn.", "")


def designs_svg(title: str, candidates: Sequence[Candidate]) -> str:
    """The best accepted networks of each structure class in turn, as block diagrams.

    Args:
        title: Name of the run.
        candidates: Of the run.
    """
    accepted = [c for c in candidates if c.outcome is Outcome.ACCEPTED and c.code]
    best = sorted(accepted, key=lambda c: -(c.first_epoch_accuracy or 0.0))
    chosen = even(best, lambda c: structure_class(c.measures), SHOWN)
    parts = [diagram(c.code or "") for c in chosen]
    columns = min(_COLUMNS, len(chosen)) or 1
    rows = [parts[i : i + columns] for i in range(0, len(parts), columns)] or [[]]
    heights = [max([p.height for p in row], default=_STEP) for row in rows]
    width = max([p.width for p in parts], default=_BOX) + _GAP
    inches = (columns * max(1.2, _INCH * width), sum(_INCH * h + 0.95 for h in heights) + 0.3)
    ratios = [_INCH * h + 0.95 for h in heights]
    with drawing(len(rows), columns, inches, ratios) as (figure, grid):
        figure.suptitle(f"{title}: accepted networks", parse_math=False, fontsize=10)
        for axes in grid.flat:
            axes.set_axis_off()
        for number, (candidate, part) in enumerate(zip(chosen, parts, strict=True)):
            axes, height = grid.flat[number], heights[number // columns]
            axes.set(xlim=(-width / 2, width / 2), ylim=(height, 0))
            axes.set_title(_caption(candidate), fontsize=6.5, parse_math=False)
            _draw(axes, part, 0.0, 0.0)
        figure.tight_layout(h_pad=0.6, w_pad=0.2)
        return svg(figure)


_INCH = 0.78
"""Inches of a box width."""


def _caption(candidate: Candidate) -> str:
    accuracy, macs = candidate.first_epoch_accuracy, candidate.measures.get("macs")
    found = structure_class(candidate.measures) or "not traced"
    words = found.split("+")
    lines = ["+".join(words[i : i + 2]) for i in range(0, len(words), 2)]
    numbers = [candidate.id, "" if accuracy is None else f"{accuracy:.1%}"]
    costs = [
        f"{(candidate.n_params or 0) / 1e3:,.0f}k",
        "" if macs is None else f"{macs / 1e6:.1f}M",
    ]
    return "\n".join([" ".join(numbers), " ".join(costs), "+\n".join(lines)])


def _draw(axes: Axes, part: Part, x: float, y: float) -> None:
    """Draw a part with its middle at ``x``, from ``y`` downwards."""
    if part.arrangement == "box":
        _box(axes, part, x, y)
        return
    if part.arrangement == "branches":
        left = x - part.width / 2
        for child in part.children:
            _draw(axes, child, left + child.width / 2, y)
            left += child.width + _GAP
        _symbol(axes, part.label, x, y + part.height - _STEP)
        return
    shift = x - _SIDE / 2 if part.arrangement == "around" else x
    below = y
    for child in part.children:
        _draw(axes, child, shift, below)
        below += child.height
    if part.arrangement == "around":
        right = x + part.width / 2 - _SIDE / 3
        axes.plot([shift, right, right, shift], [y, y, below, below], color="#555", lw=0.7)
        axes.text(
            right,
            (y + below) / 2,
            part.label,
            fontsize=7,
            ha="center",
            va="center",
            bbox={"boxstyle": "circle,pad=0.1", "fc": "white", "ec": "#555", "lw": 0.5},
        )


def _box(axes: Axes, part: Part, x: float, y: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (x - _BOX / 2, y + 0.02),
            _BOX,
            _STEP - 0.04,
            boxstyle="round,pad=0,rounding_size=0.05",
            fc=_COLOURS[part.colour],
            ec="#555",
            lw=0.4,
        )
    )
    axes.text(
        x, y + _STEP / 2, part.label[:17], fontsize=5.2, ha="center", va="center", parse_math=False
    )


def _symbol(axes: Axes, label: str, x: float, y: float) -> None:
    axes.text(
        x,
        y + _STEP / 2,
        label,
        fontsize=5.5,
        ha="center",
        va="center",
        bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "#555", "lw": 0.5},
    )
