"""Blocks of an answer that belong together: imports in one, helpers in others, ``Net`` in the last.

A block that lacks names gets those that define them before it. Of another draft of ``Net`` only the
statements that are needed are taken, so two drafts never end in one source.
"""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from archloop.code.allowed import ALLOWED_IMPORTS
from archloop.code.blocks import Block, parse_python

_CONTRACT = "supported_hyperparameters"
"""A name that the contract needs beside ``Net``, though no code refers to it."""
_BUILTIN = frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__"}


@dataclass(frozen=True)
class _Part:
    """Text that goes into a source as a whole."""

    block: int
    """Position of its block in the answer."""
    line: int
    """Where it begins in its block."""
    text: str
    binds: frozenset[str]
    needs: frozenset[str]


class Joiner:
    """Joins the blocks of one answer, each of which is looked at once.

    Args:
        blocks: In the order of the answer; Python alone.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks

    @cached_property
    def _parts(self) -> list[_Part]:
        """Every block as a whole."""
        return [_part(i, text) for i, text in enumerate(_without_own_imports(self._blocks))]

    @cached_property
    def _known(self) -> dict[str, list[_Part]]:
        """What binds each name, in the order of the answer."""
        known: dict[str, list[_Part]] = {}
        for block, whole in zip(self._blocks, self._parts, strict=True):
            for part in _statements(whole) if block.defines_net else [whole]:
                for name in part.binds - {"Net"}:
                    known.setdefault(name, []).append(part)
        return known

    def source(self, which: int) -> str:
        """The source of the ``Net`` that a block defines, with what it needs of the others."""
        if len(self._blocks) == 1:
            return self._blocks[0].text
        main = self._parts[which]
        wanted = main.needs | ({_CONTRACT} - main.binds)
        if not wanted:
            return main.text
        return _source([part.text for part in _before(main, wanted, self._known)])


def _before(part: _Part, wanted: frozenset[str], known: Mapping[str, list[_Part]]) -> list[_Part]:
    """The part behind all that define what it needs, each behind what it needs itself."""
    done: list[_Part] = []
    stack: list[tuple[_Part, list[_Part]]] = [(part, _providers(part, wanted, known))]
    seen = {id(part)}
    while stack:
        current, owed = stack[-1]
        if not owed:
            done.append(stack.pop()[0])
            continue
        provider = owed.pop(0)
        if id(provider) not in seen:
            seen.add(id(provider))
            stack.append((provider, _providers(provider, provider.needs, known)))
    return done


def _providers(
    part: _Part, wanted: frozenset[str], known: Mapping[str, list[_Part]]
) -> list[_Part]:
    """What binds the names, each once, in the order of the answer; the nearest block before."""
    found = {}
    for name in wanted & known.keys():
        parts = known[name]
        earlier = [p for p in parts if p.block <= part.block]
        provider = earlier[-1] if earlier else parts[0]
        found[id(provider)] = provider
    return sorted(found.values(), key=lambda p: (p.block, p.line))


def _source(texts: list[str]) -> str:
    """One source; what Python wants at the beginning comes first."""
    future = [line for text in texts for line in text.split("\n") if _is_future(line)]
    if future and len(texts) > 1:
        texts = ["\n".join(x for x in text.split("\n") if not _is_future(x)) for text in texts]
        texts = ["\n".join(dict.fromkeys(future)), *texts]
    return "\n\n".join(text.strip("\n") for text in texts if text.strip())


def _is_future(line: str) -> bool:
    return line.startswith("from __future__ import ")


def _part(block: int, text: str, line: int = 1) -> _Part:
    binds, needs = _names(text)
    return _Part(block, line, text, binds, needs)


def _statements(whole: _Part) -> list[_Part]:
    """Every statement of a module by itself."""
    tree = parse_python(whole.text)
    lines = whole.text.split("\n")
    parts = []
    for node in tree.body if tree else []:
        decorators = [d.lineno for d in getattr(node, "decorator_list", [])]
        begin = min([node.lineno, *decorators])
        parts.append(_part(whole.block, "\n".join(lines[begin - 1 : node.end_lineno]), begin))
    return parts


def _names(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """The names that a source binds at module level, and those that it has from elsewhere."""
    try:
        top = symtable.symtable(text, "answer", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset(), frozenset()
    binds: set[str] = set()
    uses: set[str] = set()
    tables = [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table is top or symbol.is_global():
                (binds if _binds(symbol) else uses).add(symbol.get_name())
    return frozenset(binds), frozenset(uses - binds - _BUILTIN)


def _binds(symbol: symtable.Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()


def _without_own_imports(blocks: Sequence[Block]) -> Iterator[str]:
    """The blocks' texts without imports of what the answer defines itself, in another block."""
    own = {name for block in blocks for name in _defined(block)}
    for block in blocks:
        assert block.tree is not None
        dropped: set[int] = set()
        for node in block.tree.body:
            if isinstance(node, ast.ImportFrom) and _is_own(node, own):
                dropped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        lines = enumerate(block.text.split("\n"), 1)
        yield "\n".join(line for number, line in lines if number not in dropped)


def _is_own(node: ast.ImportFrom, own: set[str]) -> bool:
    root = (node.module or "").partition(".")[0]
    if not own or (not node.level and root in ALLOWED_IMPORTS):
        return False
    return all(alias.asname is None and alias.name in own | {"*"} for alias in node.names)


def _defined(block: Block) -> set[str]:
    body = block.tree.body if block.tree else []
    return {n.name for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
