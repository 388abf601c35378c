"""Cleaning of a seed's source for teaching: what the LLM should learn, in one order, nothing else.

Imports come first (unused ones go), then ``supported_hyperparameters``, then the rest; ``Net``
lists ``__init__``, its own methods, ``forward``, ``train_setup``, ``learn``. Comments, docstrings,
argument annotations, script blocks and LEMUR's ``addon_accuracy`` lines (the score, 125 files) are
dropped. What the network computes is unchanged.
"""

from __future__ import annotations

import ast

_METHOD_ORDER = {"__init__": 0, "forward": 2, "train_setup": 3, "learn": 4}


def clean_source(code: str) -> str:
    """The cleaned source.

    Raises:
        SyntaxError: The source does not parse.
    """
    tree = ast.parse(code)
    _Stripper().visit(tree)
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    body = [n for n in tree.body if not isinstance(n, ast.Import | ast.ImportFrom)]
    body = [n for n in body if not _is_noise(n)]
    body.sort(key=lambda n: not _is_function(n, "supported_hyperparameters"))
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name == "Net":
            _order_methods(node)
    used = {n.id for statement in body for n in ast.walk(statement) if isinstance(n, ast.Name)}
    module = ast.Module(body=[*_ordered_imports(imports, used), *body], type_ignores=[])
    return ast.unparse(ast.fix_missing_locations(module))


class _Stripper(ast.NodeTransformer):
    """Drops docstrings and the annotations of arguments and results."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.body = _without_docstring(node.body)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.body = _without_docstring(node.body)
        node.returns = None
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


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


def _order_methods(net: ast.ClassDef) -> None:
    """Stable order of the contract's methods; a decorated body may depend on its own."""
    functions = [n for n in net.body if isinstance(n, ast.FunctionDef)]
    if len(functions) == len(net.body) and not any(f.decorator_list for f in functions):
        functions.sort(key=lambda f: _METHOD_ORDER.get(f.name, 1))
        net.body = [*functions]


def _ordered_imports(nodes: list[ast.Import | ast.ImportFrom], used: set[str]) -> list[ast.stmt]:
    """One import a line, ``torch`` and ``torch.nn`` first, unused and repeated ones dropped."""
    lines: dict[str, int] = {}
    for node in nodes:
        for alias in node.names:
            bound = alias.asname or alias.name.partition(".")[0]
            if bound not in used and alias.name != "*" and alias.name != "annotations":
                continue
            text = _import_line(node, alias)
            lines.setdefault(text, _rank(text))
    ordered = sorted(lines, key=lambda text: (lines[text], text))
    return [ast.parse(line).body[0] for line in ordered]


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
