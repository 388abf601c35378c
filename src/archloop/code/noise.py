"""Removes code that does nothing for a network: its author's clock, log, progress bar, collector.

``import gc`` with ``gc.collect()``, ``start = time.time()`` with the ``print`` that shows it, a
logger, ``tqdm(train_data)`` (which becomes ``train_data``), imports that nothing uses and script
blocks are removed before a source is judged, so that a network is not refused for them. Only names
whose every use is removed with them go; a network whose training depends on the clock keeps it, and
is judged as written. Lines keep their numbers, so errors still point into the author's source.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from archloop.code.allowed import is_allowed
from archloop.code.reading import BYTE_ORDER_MARK

_REMOVABLE = {
    module: re.compile(paths)
    for module, paths in {
        "gc": r".+",
        "time": r"(?!sleep).+",
        "datetime": r".+",
        "timeit": r"default_timer",
        "logging": r".+",
        "traceback": r".+",
        "warnings": r".+",
        "tracemalloc": r".+",
        "pprint": r".+",
        "tqdm": r".+",
        "os": r"environ(\..+)?|putenv|getpid",
        "sys": r"(stdout|stderr)(\..+)?|getsizeof|version",
    }.items()
}
"""What may be removed of each module: reading a clock, writing a log; not running a program."""
_IMPORTED = re.compile(r"\b(?:from\s+([\w.]+)|import\s+([\w., ]+))")
_BAR = re.compile(r"tqdm(\.\w+)*\.(tqdm|tqdm_notebook|trange|tnrange)|tqdm\.(auto|notebook|std)")
_RANGES = ("trange", "tnrange")
_BAR_METHODS = frozenset(
    (
        *("set_description", "set_description_str", "set_postfix", "set_postfix_str", "update"),
        *("close", "refresh", "clear", "write", "reset", "display", "unpause"),
    )
)
_CONSUMING = frozenset(
    (
        *("dict", "enumerate", "list", "max", "min", "set", "sorted", "sum", "tuple", "zip"),
        *("all", "any"),
    )
)
"""These take the batches of an iterator."""
_PURE_FUNCTIONS = _CONSUMING | frozenset(
    (
        *("abs", "bool", "float", "format", "getattr", "hasattr", "id", "int", "isinstance"),
        *("len", "range", "repr", "reversed", "round", "str", "type"),
    )
)
_PURE_METHODS = frozenset(
    (
        *("cpu", "detach", "dim", "element_size", "format", "get", "get_lr", "item", "items"),
        *("join", "keys", "ljust", "lower", "max", "max_memory_allocated", "mean", "min", "norm"),
        *("memory_allocated", "memory_reserved", "numel", "numpy", "parameters", "rjust", "size"),
        *("split", "std", "strftime", "strip", "sum", "title", "tolist", "total_seconds"),
        *("upper", "values", "zfill"),
    )
)
_SCOPES = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.Lambda,
    ast.ClassDef,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)
_IMPURE = (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.Lambda)

Key = tuple[int, str]
"""A name in the scope that binds it; scope 0 is that of attributes of classes and instances."""
_SELF = 0


class _Edit(NamedTuple):
    """Text in place of a node; nothing: the node's lines stay empty."""

    node: ast.AST
    text: str


def without_noise(code: str, *, thorough: bool = False) -> str:
    """The source without its noise and byte order mark, with as many lines as before.

    Args:
        code: A source; one that does not parse is returned as it is.
        thorough: Also remove what the policy allows: every ``print`` and ``warnings``.
    """
    code = code.removeprefix(BYTE_ORDER_MARK)
    if not _may_have_noise(code, thorough=thorough):
        return code
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(code)
            edits = _Noise(tree, thorough=thorough).edits()
            edited = _edited(code, edits) if edits else code
            ast.parse(edited)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code
    return edited


def _may_have_noise(code: str, *, thorough: bool) -> bool:
    """A quick look at the text: most networks import torch and nothing else."""
    if "__main__" in code or (thorough and ("print(" in code or "warnings" in code)):
        return True
    modules = (m for found in _IMPORTED.findall(code) for part in found for m in part.split(","))
    return not all(is_allowed(m.split()[0]) for m in modules if m.strip())


class _Noise:
    """Finds which names of a tree are noise: each use of such a name can be removed."""

    def __init__(self, tree: ast.Module, *, thorough: bool) -> None:
        self._tree, self._thorough = tree, thorough
        self._keys: dict[ast.AST, Key] = {}
        """Of every name, and every attribute of ``self``."""
        self._attributes: dict[ast.AST, Key] = {}
        """Attributes of other objects, which may be the same ones: what they hold is in use."""
        self._paths: dict[Key, str] = {}
        """Imported names that are noise: the dotted path of what they stand for."""
        self._imports: dict[ast.alias, Key] = {}
        self._noise: set[Key] = set()
        self._bars: set[Key] = set()
        """Variables that hold a progress bar around an iterable; they become the iterable."""
        self._looped: set[ast.AST] = set()
        """Statements inside a loop."""
        self._given: set[Key] = set()
        """Arguments of functions."""
        self._resolve(tree, [(tree, _bound(tree))], in_loop=False)

    def edits(self) -> list[_Edit]:
        """What to change; nothing if the tree has no noise."""
        self._grow()
        while True:
            edits = list(self._block(self._tree.body, in_module=True))
            covered = {n for e in edits for n in ast.walk(e.node)} - self._kept(edits)
            left = {
                k for n, k in (*self._keys.items(), *self._attributes.items()) if n not in covered
            }
            bad = self._noise & left
            if not bad:
                break
            self._noise -= bad
        removed = {n for e in edits for n in ast.walk(e.node)} - self._kept(edits)
        used = {k for n, k in self._keys.items() if n not in removed}
        edits += self._unused(used, {e.node for e in edits}, removed)
        return edits

    def _resolve(
        self, node: ast.AST, scopes: list[tuple[ast.AST, set[str]]], *, in_loop: bool
    ) -> None:
        """Note the key of every name, and which names are imported noise."""
        for child in ast.iter_child_nodes(node):
            inner, loop = scopes, in_loop
            if isinstance(child, ast.Name):
                self._keys[child] = _key(child.id, scopes)
            elif isinstance(child, ast.Attribute) and _is_self(child.value):
                self._keys[child] = (_SELF, child.attr)
            elif isinstance(child, ast.Attribute):
                self._attributes[child] = (_SELF, child.attr)
            elif isinstance(child, ast.Import | ast.ImportFrom):
                self._note_imports(child, scopes)
            elif isinstance(child, ast.arg):
                self._given.add(_key(child.arg, scopes))
            if isinstance(child, _SCOPES):
                inner, loop = [*scopes, (child, _bound(child))], False
            elif isinstance(child, ast.For | ast.While | ast.AsyncFor):
                loop = True
            if in_loop:
                self._looped.add(child)
            self._resolve(child, inner, in_loop=loop)

    def _note_imports(
        self, node: ast.Import | ast.ImportFrom, scopes: list[tuple[ast.AST, set[str]]]
    ) -> None:
        prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) and node.module else ""
        for alias in node.names:
            if alias.name == "*":
                continue
            bound = alias.asname or alias.name.partition(".")[0]
            key = self._imports[alias] = _key(bound, scopes)
            path = prefix + alias.name if alias.asname or prefix else bound
            module = path.partition(".")[0]
            if isinstance(node, ast.ImportFrom) and node.level:
                continue
            if module in _REMOVABLE and (self._thorough or not is_allowed(module)):
                self._paths[key] = path

    def _grow(self) -> None:
        """The imported noise, and every variable that is made of noise."""
        self._noise = set(self._paths)
        assigned = [
            (node, targets)
            for node in ast.walk(self._tree)
            if (targets := _targets(node)) and all(t in self._keys for t in targets)
        ]
        while True:
            before = len(self._noise) + len(self._bars)
            for node, targets in assigned:
                value = node.value  # type: ignore[attr-defined]
                keys = {self._keys[t] for t in targets}
                if self._bar_around(value) is not None:
                    self._bars |= keys
                elif self._is_noise(value):
                    self._noise |= keys
            for node in ast.walk(self._tree):
                if isinstance(node, ast.withitem) and node.optional_vars in self._keys:
                    key = self._keys[node.optional_vars]
                    if self._bar_around(node.context_expr) is not None:
                        self._bars.add(key)
                    elif self._is_noise(node.context_expr):
                        self._noise.add(key)
            if len(self._noise) + len(self._bars) == before:
                return

    def _path(self, node: ast.AST) -> str | None:
        """The dotted path of an expression that stands for something imported."""
        if node in self._keys and self._keys[node] in self._noise:
            return self._paths.get(self._keys[node])
        if isinstance(node, ast.Attribute) and (inner := self._path(node.value)):
            return f"{inner}.{node.attr}"
        return None

    def _is_removable(self, node: ast.AST) -> bool:
        """Whether an expression stands for noise: a function of a module, a logger's method."""
        path = self._path(node)
        if path is not None:
            module, _, rest = path.partition(".")
            return bool(_REMOVABLE[module].fullmatch(rest))
        if node in self._keys and self._keys[node] in self._noise:
            return True
        if isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
            inner = node.func if isinstance(node, ast.Call) else node.value
            return self._is_removable(inner)
        return False

    def _is_pure(self, value: ast.AST) -> bool:
        """Whether evaluating it has no effect on the network."""
        for node in ast.walk(value):
            if isinstance(node, _IMPURE):
                return False
            if isinstance(node, ast.Call):
                func = node.func
                known = (isinstance(func, ast.Name) and func.id in _PURE_FUNCTIONS) or (
                    isinstance(func, ast.Attribute) and func.attr in _PURE_METHODS
                )
                if not known and not self._is_removable(func):
                    return False
                takes = isinstance(func, ast.Name) and func.id in _CONSUMING
                if takes and any(self._keys.get(a) in self._given for a in node.args):
                    return False
            elif isinstance(node, ast.comprehension) and self._keys.get(node.iter) in self._given:
                return False
        return True

    def _mentions(self, node: ast.AST) -> bool:
        return any(self._keys.get(n) in self._noise for n in ast.walk(node))

    def _is_noise(self, value: ast.AST | None) -> bool:
        return value is not None and self._mentions(value) and self._is_pure(value)

    def _bar_around(self, node: ast.AST | None) -> str | None:
        """The iterable within a call of ``tqdm``, as text."""
        if not isinstance(node, ast.Call):
            return None
        path = self._path(node.func)
        if path is None or not _BAR.fullmatch(path):
            return None
        if any(isinstance(a, ast.Starred) for a in node.args):
            return None
        if path.rpartition(".")[2] in _RANGES:
            return f"range({', '.join(map(ast.unparse, node.args))})"
        named = [k.value for k in node.keywords if k.arg == "iterable"]
        first = next(iter([*node.args[:1], *named]), None)
        return None if first is None else self._text(first)

    def _text(self, node: ast.expr) -> str:
        """The source of an expression, with bars within it replaced."""
        inner = self._bar_around(node)
        if inner is not None:
            return inner
        text = ast.unparse(node)
        return text if isinstance(node, ast.Name | ast.Attribute | ast.Call) else f"({text})"

    def _is_dropped(self, node: ast.stmt) -> bool:
        """Whether a whole statement is noise."""
        match node:
            case ast.Pass():
                return True
            case ast.Import() | ast.ImportFrom():
                return all(self._imports.get(alias) in self._noise for alias in node.names)
            case ast.Expr(value=ast.Call(func=ast.Name(id="print"), args=args, keywords=named)):
                values = [*args, *(k.value for k in named)]
                shown = self._thorough or any(map(self._mentions, values))
                return shown and all(map(self._is_pure, values))
            case ast.Expr(value=ast.Call(func=func, args=args, keywords=named)):
                values = [*args, *(k.value for k in named)]
                ours = self._is_removable(func) or self._is_bar_method(func)
                return ours and all(map(self._is_pure, values))
            case ast.Expr():
                return self._is_noise(node.value)
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                value = node.value
                ours = all(map(self._is_removable, targets))
                return ours and (value is None or self._is_pure(value))
            case ast.Delete():
                return all(map(self._is_removable, node.targets))
            case _:
                return self._is_dropped_block(node)

    def _is_dropped_block(self, node: ast.stmt) -> bool:
        """Whether a statement with a body is noise, as all that it holds is."""
        match node:
            case ast.If():
                return self._is_pure(node.test) and self._are_dropped(node.body + node.orelse)
            case ast.For(iter=ast.Call(func=ast.Name(id="range"))):
                body = node.body + node.orelse
                return self._is_pure(node.iter) and self._are_dropped(body)
            case ast.Try():
                handled = [s for h in node.handlers for s in h.body]
                return self._are_dropped(node.body + handled + node.orelse + node.finalbody)
            case ast.With():
                items = all(self._is_noise(item.context_expr) for item in node.items)
                return items and self._are_dropped(node.body)
            case _:
                return False

    def _are_dropped(self, body: list[ast.stmt]) -> bool:
        """Whether all of these are noise, and at least one is more than ``pass``."""
        return all(map(self._is_dropped, body)) and not all(isinstance(n, ast.Pass) for n in body)

    def _is_bar_method(self, func: ast.AST) -> bool:
        return (
            isinstance(func, ast.Attribute)
            and func.attr in _BAR_METHODS
            and self._keys.get(func.value) in self._bars
        )

    def _block(self, body: list[ast.stmt], *, in_module: bool = False) -> Iterator[_Edit]:
        """The edits of a body; one that would be empty keeps a ``pass``."""
        gone = [n for n in body if not isinstance(n, ast.Pass) and self._is_dropped(n)]
        if in_module:
            gone += [n for n in body if _is_script(n)]
        empty = len(gone) == len(body) and not in_module
        for node in body:
            if node in gone:
                yield _Edit(node, "pass" if empty and node is body[0] else "")
            else:
                yield from self._within(node)

    def _within(self, node: ast.stmt) -> Iterator[_Edit]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            kept = [a for a in node.names if self._imports.get(a) not in self._noise]
            if len(kept) < len(node.names):
                yield _Edit(node, _import(node, kept))
            return
        if isinstance(node, ast.With) and (heading := self._heading(node)) is not None:
            yield from (_Edit(item, "") for item in node.items)
            yield _Edit(_Heading(node), heading)
        else:
            yield from self._expressions(node)
        for name in ("body", "orelse", "finalbody"):
            inner = getattr(node, name, None)
            if isinstance(inner, list) and inner:
                yield from self._block(inner)
        for handler in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
            yield from self._block(handler.body)

    def _heading(self, node: ast.With) -> str | None:
        """Another heading for a body whose context is noise."""
        if all(
            self._is_noise(item.context_expr)
            and (item.optional_vars is None or self._is_removable(item.optional_vars))
            for item in node.items
        ):
            return "if (True)"
        item = node.items[0]
        bar = self._bar_around(item.context_expr)
        if len(node.items) > 1 or bar is None or node in self._looped:
            return None
        if not isinstance(item.optional_vars, ast.Name):
            return "if (True)" if item.optional_vars is None else None
        # A body that runs once, with the variable set.
        return f"for {item.optional_vars.id} in ({bar},)"

    def _expressions(self, node: ast.stmt) -> Iterator[_Edit]:
        """Progress bars in the statement's own expressions."""
        todo = [c for c in ast.iter_child_nodes(node) if not isinstance(c, ast.stmt)]
        while todo:
            child = todo.pop()
            bar = self._bar_around(child)
            if bar is not None and isinstance(child, ast.Call):
                rest = [*child.args[1:], *(k.value for k in child.keywords)]
                if all(map(self._is_pure, rest)):
                    yield _Edit(child, bar)
                    continue
            todo += [c for c in ast.iter_child_nodes(child) if not isinstance(c, ast.stmt)]

    def _kept(self, edits: Iterable[_Edit]) -> set[ast.AST]:
        """Nodes within edits that stay: the iterable of a bar, imports beside a removed one."""
        found: set[ast.AST] = set()
        for node, _ in edits:
            inner = node.node if isinstance(node, _Heading) else None
            calls: list[ast.AST] = [i.context_expr for i in inner.items] if inner else [node]
            for call in calls:
                if self._bar_around(call) is None:
                    continue
                assert isinstance(call, ast.Call)
                path = self._path(call.func) or ""
                is_range = path.rpartition(".")[2] in _RANGES
                named = [k.value for k in call.keywords if k.arg == "iterable"]
                firsts = call.args if is_range else [*call.args[:1], *named][:1]
                for first in firsts:
                    found |= self._of_iterable(first)
            if inner is not None:
                variables = [i.optional_vars for i in inner.items if i.optional_vars]
                found |= {v for v in variables if self._keys.get(v) in self._bars}
        return found

    def _of_iterable(self, node: ast.AST) -> set[ast.AST]:
        """All nodes of an iterable that stays, without bars around it."""
        inner = [node]
        if isinstance(node, ast.Call) and self._bar_around(node) is not None:
            inner = list(node.args[:1])
        return {n for i in inner for n in ast.walk(i)}

    def _unused(
        self, used: set[Key], edited: set[ast.AST], removed: set[ast.AST]
    ) -> Iterator[_Edit]:
        """Forbidden imports of which nothing is used."""
        for body in _bodies(self._tree):
            for node in body:
                if not isinstance(node, ast.Import | ast.ImportFrom) or node in edited | removed:
                    continue
                kept = [a for a in node.names if not self._is_idle(node, a, used)]
                if len(kept) < len(node.names):
                    empty = "pass" if body is not self._tree.body else ""
                    yield _Edit(node, _import(node, kept) if kept else empty)

    def _is_idle(self, node: ast.Import | ast.ImportFrom, alias: ast.alias, used: set[Key]) -> bool:
        if alias not in self._imports or self._imports[alias] in used:
            return False
        if isinstance(node, ast.Import):
            return not is_allowed(alias.name)
        return bool(node.level) or not is_allowed(f"{node.module}.{alias.name}")


class _Heading(ast.AST):
    """The heading of a ``with`` statement, up to its colon."""

    _fields = ()

    def __init__(self, node: ast.With) -> None:
        last = node.items[-1].optional_vars or node.items[-1].context_expr
        self.node = node
        self.lineno, self.col_offset = node.lineno, node.col_offset
        self.end_lineno, self.end_col_offset = last.end_lineno, last.end_col_offset


def _import(node: ast.Import | ast.ImportFrom, kept: list[ast.alias]) -> str:
    if isinstance(node, ast.Import):
        return ast.unparse(ast.Import(kept))
    return ast.unparse(ast.ImportFrom(node.module, kept, node.level))


def _is_script(node: ast.stmt) -> bool:
    """``if __name__ == "__main__":``, which never runs here."""
    match node:
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()]), orelse=[]):
            return True
        case _:
            return False


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _targets(node: ast.AST) -> list[ast.AST]:
    """Where an assignment of one value goes."""
    match node:
        case ast.Assign(targets=targets):
            return [*targets]
        case ast.AnnAssign(target=target, value=value) if value is not None:
            return [target]
        case ast.AugAssign(target=target):
            return [target]
        case _:
            return []


def _bodies(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list):
                yield body


def _bound(scope: ast.AST) -> set[str]:
    """Names that a scope binds itself."""
    found: set[str] = set()
    declared: set[str] = set()
    if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        given = scope.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        found |= {a.arg for a in arguments if a is not None}
    todo = list(ast.iter_child_nodes(scope))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        if isinstance(node, _SCOPES):
            continue
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {a.asname or a.name.partition(".")[0] for a in node.names}
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            declared |= set(node.names)
        todo += ast.iter_child_nodes(node)
    return found - declared


def _key(name: str, scopes: list[tuple[ast.AST, set[str]]]) -> Key:
    """The innermost scope that binds the name; the scope of a class is seen in its body alone."""
    for depth, (scope, bound) in enumerate(reversed(scopes)):
        if name in bound and not isinstance(scope, ast.ClassDef):
            return id(scope), name
        if name in bound and not depth:
            return _SELF, name  # a class attribute
    return id(scopes[0][0]), name


def _edited(code: str, edits: list[_Edit]) -> str:
    """The code with the edits made; removed text leaves its line ends."""
    data = code.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    spans = []
    for node, text in edits:
        if isinstance(node, ast.withitem):
            continue  # part of a heading
        begin = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        spans.append((begin, end, text, isinstance(node, ast.stmt)))
    for begin, end, text, is_statement in sorted(spans, reverse=True):
        lines = b"\n" * data.count(b"\n", begin, end)
        new = text.encode()
        if not new:
            start = data.rfind(b"\n", 0, begin) + 1
            if data[start:begin].strip() or data[end:].partition(b"\n")[0].strip(b" \t\r"):
                new = b"pass"  # something else is on the line
            else:
                begin = start
        elif lines and not is_statement:
            # A line may only end within brackets here.
            new = new[:-1] + lines + b")" if new.endswith(b")") else b"(" + new + lines + b")"
            lines = b""
        data = data[:begin] + new + lines + data[end:]
    return data.decode()
