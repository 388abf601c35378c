"""The arguments of a convolution of a source, whichever way it is written."""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass, field, replace
from typing import Self

from archloop.code.edits.chains import called

_BLOCK = ("width", "kernel", "stride", "groups", "dilation", "act")
_TORCH = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
_KERNEL = 3
"""What a block's kernel is where none is written."""


@dataclass(frozen=True)
class Conv:
    """A convolution: ``conv(...)`` of :mod:`archloop.blocks`, or ``nn.Conv2d(...)``."""

    name: str
    """``conv``, ``Conv2d`` or ``LazyConv2d``."""
    func: ast.expr
    arguments: dict[str, ast.expr] = field(default_factory=dict)
    """By name, as they are written."""

    @classmethod
    def read(cls, node: ast.expr) -> Self | None:
        """The convolution that an expression makes, if it is one that edits know."""
        name = called(node)
        names = {"conv": _BLOCK, "Conv2d": _TORCH, "LazyConv2d": _TORCH[1:]}.get(name)
        if names is None or not isinstance(node, ast.Call) or len(node.args) > len(names):
            return None
        if any(isinstance(arg, ast.Starred) for arg in node.args):
            return None
        arguments = dict(zip(names, node.args, strict=False))
        for keyword in node.keywords:
            if keyword.arg is None:
                return None
            arguments[keyword.arg] = keyword.value
        return cls(name, node.func, arguments)

    def write(self) -> ast.expr:
        """The expression, with positions as far as they go and names after that."""
        names = {"conv": _BLOCK[:2], "Conv2d": _TORCH[:3], "LazyConv2d": _TORCH[1:3]}[self.name]
        args: list[ast.expr] = []
        for name in names:
            if name not in self.arguments:
                break
            args.append(copy.deepcopy(self.arguments[name]))
        rest = {n: v for n, v in self.arguments.items() if n not in names[: len(args)]}
        keywords = [ast.keyword(name, copy.deepcopy(value)) for name, value in rest.items()]
        return ast.Call(self.func, args, keywords)

    @property
    def is_block(self) -> bool:
        """Whether normalisation and activation are part of it."""
        return self.name == "conv"

    def number(self, name: str) -> int | None:
        """An argument that is written as a whole number; that of the blocks if left out."""
        default = {"kernel": _KERNEL, "kernel_size": None, "padding": 0}.get(name, 1)
        node = self.arguments.get(name)
        if node is None:
            return None if name in ("width", "out_channels") else default
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        return None

    @property
    def kernel(self) -> int | None:
        """The side of a square kernel; ``None`` where it is another one or not known."""
        return self.number(self.side)

    @property
    def width(self) -> int | None:
        """Output channels, where they are written as a number."""
        return self.number(self.out)

    @property
    def keeps_width(self) -> bool:
        """Whether it surely gives as many channels as it takes."""
        if self.is_block:
            return "width" not in self.arguments
        ends = [self.arguments.get(name) for name in _TORCH[:2]]
        return all(ends) and ast.unparse(ends[0]) == ast.unparse(ends[1])  # type: ignore[arg-type]

    @property
    def is_plain(self) -> bool:
        """Whether it is one group without stride and dilation, and keeps the image's size."""
        plain = all(self.number(name) == 1 for name in ("stride", "groups", "dilation"))
        if self.is_block or not plain:
            return plain
        kernel = self.kernel
        return kernel is not None and self.number("padding") == (kernel - 1) // 2

    @property
    def side(self) -> str:
        """Name of the argument for the kernel."""
        return "kernel" if self.is_block else "kernel_size"

    @property
    def out(self) -> str:
        """Name of the argument for the output channels."""
        return "width" if self.is_block else "out_channels"

    def sized(self, kernel: int | tuple[int, int], dilation: int = 1) -> Conv:
        """The same with another kernel or dilation, padded so that the image keeps its size."""
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        changed: dict[str, object] = {"dilation": None if dilation == 1 else dilation}
        if self.is_block:
            return self.with_(kernel=None if kernel == _KERNEL else kernel, **changed)
        padding = tuple(dilation * (side - 1) // 2 for side in sides)
        same = padding[0] if padding[0] == padding[1] else padding
        return self.with_(kernel_size=kernel, padding=same, **changed)

    def with_(self, **numbers: object) -> Conv:
        """The same with other arguments; ``None`` takes one out."""
        arguments = {n: v for n, v in self.arguments.items() if numbers.get(n, v) is not None}
        for name, value in numbers.items():
            if value is not None:
                text = value if isinstance(value, str) else repr(value)
                arguments[name] = ast.parse(text, mode="eval").body
        return replace(self, arguments=arguments)
