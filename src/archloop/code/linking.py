"""Networks that import :mod:`archloop.blocks`, as a single file and back.

:func:`linked` puts the definitions that a source uses in the place of the import, so that a
candidate needs nothing but torch. :func:`unlinked` is the reverse: what an LLM learns is short.
The blocks are read as text and never imported here.
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

MODULE = "archloop.blocks"
_FILE = Path(__file__).parents[1] / "blocks.py"
_CONTRACT = "supported_hyperparameters"
"""A name that the contract needs though no code refers to it."""
_BASE = "class Design(nn.Module):"
"""What a linked source of such a network has."""
_INNER = " \t)]}#"
"""What a line begins with that belongs to the statement before it."""


@dataclass(frozen=True)
class _Library:
    """The module as text."""

    imports: dict[str, str]
    """What binds a name: ``torch`` -> ``import torch``."""
    definitions: dict[str, str]
    """Source of each class and function, without comments and docstrings, in file order."""
    needs: dict[str, frozenset[str]]
    """The names of the module that each definition refers to."""
    names: dict[str, str]
    """Which name each of these texts defines."""

    def closure(self, names: Iterable[str]) -> set[str]:
        """These names of the module, and what they need."""
        found: set[str] = set()
        todo = [name for name in names if name in self.definitions or name in self.imports]
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += self.needs.get(name, ())
        return found

    def text(self, names: set[str]) -> Iterator[str]:
        """The statements that define these names, in file order."""
        lines = [line for name, line in self.imports.items() if name in names]
        if lines:
            yield "\n".join(lines)
        yield from (text for name, text in self.definitions.items() if name in names)


@lru_cache(maxsize=1)
def _library() -> _Library:
    source = _FILE.read_text("utf-8")
    imports: dict[str, str] = {}
    definitions: dict[str, str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                imports[alias.asname or alias.name] = ast.unparse(node)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            definitions[node.name] = ast.unparse(_without_docstrings(node))
    own = imports.keys() | definitions.keys()
    needs = {name: frozenset(_names(text) & own) for name, text in definitions.items()}
    texts = {text: name for name, text in (imports | definitions).items()}
    return _Library(imports, definitions, needs, texts)


def _without_docstrings(tree: ast.stmt) -> ast.stmt:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _names(text: str) -> set[str]:
    """The names of other statements that a source refers to."""
    found: set[str] = set()
    tables = [symtable.symtable(text, "network", "exec")]
    top = tables[0]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        symbols = table.get_symbols()
        found.update(s.get_name() for s in symbols if table is top or s.is_global())
    return found


def linked(source: str) -> str:
    """The source with the blocks that it uses in place of imports of :mod:`archloop.blocks`.

    A source that does not import it, or does not parse, is returned as it is. An import of names
    that the module does not have is left, so that the policy refuses it by these names.

    Args:
        source: Of a network.
    """
    if MODULE not in source:
        return source
    try:
        tree = ast.parse(source)
        used = _names(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source
    imports = [node for node in tree.body if _is_import(node)]
    if not imports:
        return source
    library = _library()
    wanted, everything = _wanted(imports)
    unknown = wanted - library.imports.keys() - library.definitions.keys()
    own = _bound(node for node in tree.body if node not in imports)
    wanted = (used if everything else wanted) | {_CONTRACT}
    parts = [f"from {MODULE} import {', '.join(sorted(unknown))}"] * bool(unknown)
    # What the network imports itself may come only after the blocks.
    own -= library.imports.keys() - _bound(n for n in tree.body if n.lineno < imports[0].lineno)
    parts += library.text(library.closure(wanted - own) - own)
    return _without(source, imports, "\n\n".join(parts))


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == MODULE and not node.level


def _wanted(imports: Iterable[ast.stmt]) -> tuple[set[str], bool]:
    """The names that imports bind; whether they bind everything."""
    names = {alias.name for node in imports for alias in node.names}  # type: ignore[attr-defined]
    return names - {"*"}, "*" in names


def _bound(nodes: Iterable[ast.stmt]) -> set[str]:
    """The names that statements of a module bind."""
    found: set[str] = set()
    for node in nodes:
        match node:
            case ast.ClassDef() | ast.FunctionDef():
                found.add(node.name)
            case ast.Import() | ast.ImportFrom():
                found.update(alias.asname or alias.name for alias in node.names)
            case ast.Assign(targets=targets):
                found.update(t.id for t in targets if isinstance(t, ast.Name))
            case _:
                pass
    return found


def _without(source: str, nodes: Iterable[ast.stmt], text: str) -> str:
    """The source with a text in the place of the first of these statements, without the others."""
    lines: list[str | None] = [*source.split("\n")]
    first = True
    for node in nodes:
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = None
        if first:
            lines[node.lineno - 1] = text
        first = False
    return "\n".join(line for line in lines if line is not None)


def unlinked(source: str) -> str:
    """A source with an import of :mod:`archloop.blocks` in place of the blocks' definitions.

    :func:`linked` makes the same network of the result. The list of layers has a line for each: a
    small LLM loses count of the brackets of a long one. A source without such definitions is
    returned as it is.

    Args:
        source: Of a network.
    """
    if _BASE not in source:
        return source
    library = _library()
    taken, left = set(), []
    for text in _statements(source):
        if (name := library.names.get(text)) is not None:
            taken.add(name)
        else:
            left.append(text)
    rest = "\n\n".join(left)
    try:
        used = _names(rest)
        tree = ast.parse(rest)
        own = _bound(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source
    if library.closure((used | {_CONTRACT}) - own) - own != taken:
        return source
    rest = _a_line_each(rest, tree)
    return f"from {MODULE} import *\n\n{rest}" + "\n" * source.endswith("\n")


def _a_line_each(source: str, tree: ast.Module) -> str:
    """The source with a line for each layer of the list that ``layers`` returns."""
    lines = source.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.name != "layers":
            continue
        statement = node.body[-1]
        if isinstance(statement, ast.Return) and isinstance(statement.value, ast.List):
            indent = " " * statement.col_offset
            layers = [f"{indent}    {ast.unparse(layer)}," for layer in statement.value.elts]
            span = slice(statement.lineno - 1, statement.end_lineno)
            lines[span] = [f"{indent}return [", *layers, f"{indent}]"]
            break
    return "\n".join(lines)


def _statements(source: str) -> Iterator[str]:
    """The texts of a module's statements, each line at its left edge beginning one."""
    found: list[str] = []
    for line in source.split("\n"):
        if found and line and line[0] not in _INNER and not found[-1].startswith("@"):
            yield "\n".join(found).rstrip()
            found = []
        found.append(line)
    yield "\n".join(found).rstrip()
