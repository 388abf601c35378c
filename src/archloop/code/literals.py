"""How much data a source holds: weights or labels can hide in texts, numbers and names."""

from __future__ import annotations

import ast

_NAME = 40
"""Characters of a name that are not counted; hardly an honest one needs more."""


def literal_bytes(code: str) -> int:
    """Bytes of data in constants and long names; docstrings and repeated texts count for none.

    A source that does not parse has none.
    """
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 0
    docstrings = {id(text) for node in ast.walk(tree) if (text := _docstring(node)) is not None}
    values = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and id(node) not in docstrings
    ]
    texts = {value for value in values if isinstance(value, str | bytes)}
    names = {name for node in ast.walk(tree) for name in _names(node)}
    return sum(map(_bytes, [*texts, *(v for v in values if not isinstance(v, str | bytes))])) + sum(
        max(0, len(name) - _NAME) for name in names
    )


def _bytes(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, bool) or value is None or value is Ellipsis:
        return 0
    if isinstance(value, int):
        return (value.bit_length() + 7) // 8
    return 8


def _docstring(node: ast.AST) -> ast.Constant | None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return first.value if isinstance(first.value.value, str) else None
    return None


def _names(node: ast.AST) -> list[str]:
    """The names in one node."""
    found = (getattr(node, key, None) for key in ("id", "attr", "name", "arg", "asname"))
    return [name for name in found if isinstance(name, str)]
