"""The automatic width edit: a network too large for the budget, rewritten with fewer channels.

Every integer that looks like a width is scaled: those below 1,024 (channels) by one factor, larger
ones (dense layers, flattened sizes) by another. Kernel sizes, strides, paddings and pooled sizes
are left alone. The edit does not know what an integer means, so a result is used only if it builds
in the sandbox.
"""

from __future__ import annotations

import ast

MIN_WIDTH = 16
"""Smaller integers are kernel sizes, strides, depths and class counts."""
DENSE_WIDTH = 1024
_KEPT_KEYWORDS = frozenset(
    [
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "output_size",
        "groups",
        "num_groups",
        "num_heads",
        "p",
        "eps",
        "momentum",
        "size",
        "scale_factor",
        "depth",
        "num_layers",
    ]
)
_KEPT_CALLS = frozenset(
    ["AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "MaxPool2d", "AvgPool2d", "range", "Dropout"]
)

FACTORS: tuple[tuple[float, float], ...] = (
    (1.0, 0.25),
    (1.0, 0.125),
    (0.75, 0.125),
    (0.5, 0.125),
    (0.5, 0.0625),
    (0.375, 0.0625),
    (0.25, 0.0625),
    (0.25, 0.03125),
    (0.1875, 0.03125),
    (0.125, 0.03125),
)
"""(channels, dense) factors, widest first; neither ever grows, so parameter counts fall along the
list."""


def narrow(code: str, channels: float, dense: float) -> str:
    """The source with its widths scaled; widths stay multiples of 8 (of 4 below 16)."""
    tree = ast.parse(code)
    return ast.unparse(_Narrower(channels, dense).visit(tree))


class _Narrower(ast.NodeTransformer):
    def __init__(self, channels: float, dense: float) -> None:
        self._channels, self._dense = channels, dense

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        name = node.func.id if isinstance(node.func, ast.Name) else name
        if name in _KEPT_CALLS:
            return node
        node.args = [self.visit(argument) for argument in node.args]
        for keyword in node.keywords:
            if keyword.arg not in _KEPT_KEYWORDS:
                keyword.value = self.visit(keyword.value)
        node.func = self.visit(node.func)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        value = node.value
        if type(value) is not int or value < MIN_WIDTH:
            return node
        scaled = value * (self._dense if value >= DENSE_WIDTH else self._channels)
        step = 8 if scaled >= MIN_WIDTH else 4
        return ast.copy_location(ast.Constant(max(step, round(scaled / step) * step)), node)
