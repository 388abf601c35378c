"""Where a source lists its layers, as syntax trees that edits change in place.

A chain is a sequence of expressions, each of which makes a layer that takes what the one before it
gives: the arguments of ``nn.Sequential`` and of the blocks that are sequences, and the list that
``layers`` of a :class:`archloop.blocks.Design` returns, lists that are assigned, added or
``extend`` another. A layer that is assigned or appended by itself, as in
``self.conv1 = nn.Conv2d(3, 16, 3)``, is a chain of one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SEQUENCES = frozenset({"Sequential", "Skip", "Gate"})
"""What takes its layers as arguments, one after the other."""
_LAYER = re.compile(r"nn\.|torch\.nn\.")
_NO_LAYERS = frozenset(
    {"ModuleList", "ModuleDict", "Parameter", "ParameterList", "CrossEntropyLoss", "super"}
    | {"int", "float", "len", "max", "min", "range", "list", "tuple", "dict", "str", "sum"}
)


@dataclass
class Chain:
    """A sequence of layers in a tree; :meth:`replace` writes another in its place."""

    layers: list[ast.expr]
    _slot: tuple[ast.AST, str]
    """The node and its field that hold the layers."""
    inside: str
    """Name of what holds them: ``Sequential``, ``Skip``, ``Gate``, ``list`` or ``one``."""

    def replace(self, layers: Sequence[ast.expr]) -> None:
        """Write these layers in place of those that are there."""
        node, field = self._slot
        self.layers = [*layers]
        if self.inside == "one":
            one = layers[0] if len(layers) == 1 else call("nn.Sequential", *layers)
            setattr(node, field, [one] if field == "args" else one)
        else:
            setattr(node, field, [*layers])


def chains(tree: ast.Module) -> list[Chain]:
    """The chains of a source, in the order of its text."""
    return list(_chains(tree))


def _chains(tree: ast.AST) -> Iterator[Chain]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(args=args, keywords=[]) if (
                called(node) in SEQUENCES and args and not _starred(args)
            ):
                yield Chain([*args], (node, "args"), called(node))
            case (
                ast.Return(value=ast.List(elts=layers))
                | ast.Assign(value=ast.List(elts=layers))
                | ast.AugAssign(op=ast.Add(), value=ast.List(elts=layers))
                | ast.Call(func=ast.Attribute(attr="extend"), args=[ast.List(elts=layers)])
            ) if any(map(_is_layer, layers)) and not _starred(layers):
                held = node.args[0] if isinstance(node, ast.Call) else node.value
                assert held is not None
                yield Chain([*layers], (held, "elts"), "list")
            case ast.Call(func=ast.Attribute(attr="append"), args=[layer]) if _is_layer(layer):
                yield Chain([layer], (node, "args"), "one")
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"))], value=layer):
                if _is_layer(layer) and called(layer) not in SEQUENCES:
                    yield Chain([layer], (node, "value"), "one")
            case _:
                pass


def _is_layer(node: ast.expr) -> bool:
    """Whether an expression makes a layer that edits may know."""
    name = called(node)
    if not isinstance(node, ast.Call) or name in _NO_LAYERS or not name:
        return False
    return isinstance(node.func, ast.Name) or _LAYER.match(ast.unparse(node.func)) is not None


def _starred(args: Sequence[ast.expr]) -> bool:
    return any(isinstance(arg, ast.Starred) for arg in args)


def called(node: ast.AST) -> str:
    """Last part of the name of what an expression calls; empty where it calls nothing by name."""
    if isinstance(node, ast.Call):
        match node.func:
            case ast.Attribute(attr=name) | ast.Name(id=name):
                return name
    return ""


def expression(text: str) -> ast.expr:
    """The tree of an expression."""
    return ast.parse(text, mode="eval").body


def call(name: str, *args: ast.expr) -> ast.Call:
    """The tree of a call."""
    return ast.Call(expression(name), [*args], [])
