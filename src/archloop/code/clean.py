"""Cleans the source of a network for training: removes noise and puts its parts in one order.

Imports come first (unused ones are removed), then ``supported_hyperparameters``, then the rest;
``Net`` lists ``__init__``, its own methods, ``forward``, ``train_setup``, ``learn``. Comments,
docstrings, argument annotations, script blocks and LEMUR's ``addon_accuracy`` lines (the score, 125
files) are dropped. What the network computes is unchanged.

In the style ``unparse`` the text is that of ``ast.unparse``; networks of a corpus share most of
their methods, so the text of each function is cached by its source. In the style ``source`` the
statements, their order and their annotations stay as written.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from archloop.code.policy import policy_faults

Style = Literal["unparse", "source"]
"""``unparse``: formatted by ``ast.unparse``; ``source``: as written."""

_METHOD_ORDER = {"__init__": 0, "forward": 2, "train_setup": 3, "learn": 4}
_REMEMBERED = 1 << 16
_BLOCKS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class _Piece:
    """One statement, cleaned."""

    text: str
    used: frozenset[str]
    """Names that it reads or writes."""
    fault: str | None
    """The first forbidden construct in it; ``None``: there is none."""


@dataclass(frozen=True)
class Cleaned:
    """A cleaned source."""

    code: str
    fault: str | None
    """The first construct that :mod:`archloop.code.policy` forbids; ``None``: there is none."""


def clean_source(code: str, style: Style = "unparse") -> str:
    """The cleaned source.

    Raises:
        SyntaxError: The source does not parse, or cannot be formatted.
    """
    with _as_syntax_error():
        return clean_tree(ast.parse(code), code, style).code


def clean_tree(tree: ast.Module, code: str, style: Style = "unparse") -> Cleaned:
    """Clean a source that is parsed already; the tree is modified.

    A source that cannot be cleaned as written (two statements on a line, a docstring on the line of
    its heading, text that ``tokenize`` refuses) is formatted by ``ast.unparse`` in both styles.

    Raises:
        SyntaxError: It cannot be formatted.
    """
    with _as_syntax_error():
        return _clean_tree(tree, code, style)


@contextmanager
def _as_syntax_error() -> Iterator[None]:
    """Turn errors of ``ast.unparse`` into SyntaxError: nested too deeply, or no text for it.

    Some strings within f-strings and numbers with very many digits have no text.
    """
    try:
        yield
    except (RecursionError, ValueError) as error:
        raise SyntaxError(f"cannot be formatted anew: {error}") from None


def _clean_tree(tree: ast.Module, code: str, style: Style) -> Cleaned:
    if style == "source" and (kept := _as_written(tree, code)) is not None:
        return kept
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    body = [n for n in tree.body if not isinstance(n, ast.Import | ast.ImportFrom)]
    body = [n for n in body if not _is_noise(n)]
    body.sort(key=lambda n: not _is_function(n, "supported_hyperparameters"))
    lines = code.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    alone = _alone(tree.body)
    pieces = [_statement(node, lines, alone=node in alone) for node in body]
    used = frozenset[str]().union(*(piece.used for piece in pieces))
    heading = _ordered_imports(imports, used)
    faults = [fault for line in heading if (fault := _import_fault(line))]
    faults += [piece.fault for piece in pieces if piece.fault]
    blocks = [isinstance(node, _BLOCKS) for node in body]
    text = _joined([*heading, *(p.text for p in pieces)], [False] * len(heading) + blocks)
    return Cleaned(text, faults[0] if faults else None)


def _as_written(tree: ast.Module, code: str) -> Cleaned | None:
    """Clean in the style ``source``; ``None``: not possible."""
    code = code.replace("\r\n", "\n").replace("\r", "\n")
    written = code.split("\n")
    lines: list[str | None] = [*written]
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    gone: list[ast.stmt] = [*imports, *(n for n in tree.body if _is_noise(n))]
    bodies = [n.body for n in ast.walk(tree) if isinstance(n, _BLOCKS)]
    texts = [(n, body) for body in [*bodies, tree.body] for n in body if _is_text(n)]
    if any(n not in _alone(body) or _is_behind(n, written) for n, body in texts):
        return None
    if any(n not in _alone(tree.body) for n in gone):
        return None
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = written[row - 1][:column].rstrip() or None
    except (tokenize.TokenError, SyntaxError):
        return None
    for body in bodies:
        for node in filter(_is_text, body):
            _cut(lines, node)
        if all(map(_is_text, body)):
            lines[body[0].lineno - 1] = " " * body[0].col_offset + "pass"
    for node in gone:
        _cut(lines, node)
    rest = [n for n in tree.body if n not in gone]
    used = frozenset(n.id for top in rest for n in ast.walk(top) if isinstance(n, ast.Name))
    heading = "\n".join(_ordered_imports(imports, used))
    body_text = "\n".join(line for line in lines if line is not None).strip("\n")
    text = f"{heading}\n\n\n{body_text}".strip("\n")
    return Cleaned(text, next(policy_faults(ast.walk(ast.parse(text))), None))


def _is_behind(node: ast.stmt, lines: list[str]) -> bool:
    """Whether something precedes the node on its line, such as a heading."""
    return bool(lines[node.lineno - 1].encode()[: node.col_offset].strip())


def _cut(lines: list[str | None], node: ast.stmt) -> None:
    for row in range(_first_line(node) - 1, node.end_lineno or 0):
        lines[row] = None


def _joined(texts: Sequence[str], blocks: Sequence[bool]) -> str:
    """Join statements, with a blank line before functions and classes, as in ``ast.unparse``."""
    parts = ["\n\n" + t if block else "\n" + t for t, block in zip(texts, blocks, strict=True)]
    return "".join(parts).lstrip("\n")


def _alone(body: Sequence[ast.stmt]) -> set[ast.stmt]:
    """Statements that share no line with another, so that their lines can be moved."""
    ends = [0, *(n.end_lineno or 0 for n in body)]
    starts = [*(_first_line(n) for n in body), 1 << 60]
    return {
        node for i, node in enumerate(body) if ends[i] < starts[i] and ends[i + 1] < starts[i + 1]
    }


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, _BLOCKS) else []
    return min([node.lineno, *(d.lineno for d in decorators)])


def _statement(node: ast.stmt, lines: list[str], *, alone: bool) -> _Piece:
    if isinstance(node, ast.ClassDef) and alone:
        return _class(node, lines)
    return _remembered(node, lines) if alone else _cleaned(node)


_pieces: dict[str, _Piece] = {}


def _remembered(node: ast.stmt, lines: list[str]) -> _Piece:
    source = "\n".join(lines[_first_line(node) - 1 : node.end_lineno])
    piece = _pieces.get(source)
    if piece is None:
        if len(_pieces) >= _REMEMBERED:
            _pieces.clear()
        piece = _pieces[source] = _cleaned(node)
    return piece


def _cleaned(node: ast.stmt) -> _Piece:
    nodes = _stripped(node)
    used = frozenset(n.id for n in nodes if type(n) is ast.Name)
    return _Piece(ast.unparse(node), used, next(policy_faults(nodes), None))


@lru_cache(maxsize=_REMEMBERED)
def _import_fault(line: str) -> str | None:
    return next(policy_faults(ast.parse(line).body), None)


def _class(node: ast.ClassDef, lines: list[str]) -> _Piece:
    """The text of a class from its statements, if each is on separate lines."""
    alone = _alone(node.body)
    body = [n for n in node.body if not _is_text(n)]
    on_heading = _first_line(node.body[0]) <= node.lineno
    if on_heading or not body or any(n not in alone for n in body):
        return _cleaned(node)
    if node.name == "Net":
        body = _ordered_methods(body)
    pieces = [_remembered(n, lines) for n in body]
    if any('"""' in piece.text or "'''" in piece.text for piece in pieces):
        return _cleaned(node)  # text over several lines, which cannot be indented
    shell = ast.copy_location(
        ast.ClassDef(node.name, node.bases, node.keywords, [ast.Pass()], node.decorator_list),
        node,
    )
    heading = _cleaned(shell)
    blocks = [isinstance(n, _BLOCKS) for n in body]
    inner = _joined(["    " + p.text.replace("\n", "\n    ") for p in pieces], blocks)
    first = "\n\n" if blocks[0] else "\n"
    return _Piece(
        heading.text.removesuffix("\n    pass") + first + inner.replace("\n    \n", "\n\n"),
        heading.used.union(*(piece.used for piece in pieces)),
        heading.fault or next((piece.fault for piece in pieces if piece.fault), None),
    )


def _stripped(root: ast.stmt) -> list[ast.AST]:
    """Remove docstrings and annotations of arguments and results; returns the remaining nodes.

    One pass in the order of ``ast.walk``, over the attributes of each node: ``ast.walk`` and
    ``ast.NodeTransformer`` look up every field by name, which is four times slower.
    """
    nodes: list[ast.AST] = [root]
    for node in nodes:
        kind = type(node)
        if kind is ast.FunctionDef:
            node.body = _without_docstring(node.body)  # type: ignore[attr-defined]
            node.returns = None  # type: ignore[attr-defined]
        elif kind is ast.ClassDef:
            node.body = _without_docstring(node.body)  # type: ignore[attr-defined]
            if node is root and root.name == "Net":  # type: ignore[attr-defined]
                node.body = _ordered_methods(node.body)  # type: ignore[attr-defined]
        elif kind is ast.arg:
            node.annotation = None  # type: ignore[attr-defined]
        for value in node.__dict__.values():
            if type(value) is list:
                nodes += [item for item in value if isinstance(item, ast.AST)]
            elif isinstance(value, ast.AST):
                nodes.append(value)
    return nodes


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    kept = [statement for statement in body if not _is_text(statement)]
    return kept or [ast.Pass()]


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_noise(node: ast.stmt) -> bool:
    match node:
        case ast.AnnAssign(target=ast.Name(id="addon_accuracy")):
            return True
        case ast.Assign(targets=[ast.Name(id="addon_accuracy" | "__all__")]):
            return True
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return True
        case _:
            return _is_text(node)


def _is_function(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == name


def _ordered_methods(body: list[ast.stmt]) -> list[ast.stmt]:
    """Stable order of the contract's methods; a decorated body may depend on its own."""
    functions = [n for n in body if isinstance(n, ast.FunctionDef)]
    if len(functions) != len(body) or any(f.decorator_list for f in functions):
        return body
    return [*sorted(functions, key=lambda f: _METHOD_ORDER.get(f.name, 1))]


def _ordered_imports(nodes: list[ast.Import | ast.ImportFrom], used: frozenset[str]) -> list[str]:
    """One import a line, ``torch`` and ``torch.nn`` first, unused and repeated ones dropped."""
    lines: dict[str, int] = {}
    for node in nodes:
        for alias in node.names:
            bound = alias.asname or alias.name.partition(".")[0]
            if bound not in used and alias.name != "*" and alias.name != "annotations":
                continue
            text = _import_line(node, alias)
            lines.setdefault(text, _rank(text))
    return sorted(lines, key=lambda text: (lines[text], text))


def _import_line(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
    name = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
    if isinstance(node, ast.Import):
        return f"import {name}"
    if node.module == "torch" and alias.name == "nn":
        return "import torch.nn as " + (alias.asname or "nn")
    return f"from {'.' * node.level}{node.module or ''} import {name}"


def _rank(line: str) -> int:
    first = ("from __future__", "import torch", "import torch.nn", "import torch.", "from torch")
    exact = {"import torch": 1, "import torch.nn as nn": 2}
    return exact.get(
        line, 0 if line.startswith(first[0]) else 3 if line.startswith(first[3:]) else 4
    )
