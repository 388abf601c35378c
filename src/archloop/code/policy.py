"""Static checks of a source: it parses, keeps the contract, uses only what networks need.

Nothing is executed. These checks are a cheap first filter that gives a clear error line; the
boundary against hostile code is the sandbox, not this module.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator

from archloop.text import one_line
from archloop.types import Outcome, Verdict

MAX_SOURCE_BYTES = 64 * 1024
"""Longer sources are refused: the longest LEMUR network has 40 kB."""
MAX_DEPTH = 100
"""Most levels of a syntax tree: ``ast.unparse`` needs up to six nested calls for a level (a
dictionary), and Python allows a thousand. The deepest network of the packaged corpus has 14."""

ALLOWED_IMPORTS = frozenset(
    [
        "torch",
        "math",
        "numpy",
        "typing",
        "collections",
        "functools",
        "itertools",
        "dataclasses",
        "random",
        "copy",
        "abc",
        "enum",
        "operator",
        "numbers",
        "warnings",
        "types",
        "re",
        "string",
        "__future__",
    ]
)
FORBIDDEN_MODULES = (
    "torch.hub",
    "torch.utils.model_zoo",
    "torch.distributed",
    "torch.multiprocessing",
)
FORBIDDEN_CALLS = frozenset(
    [
        "eval",
        "exec",
        "compile",
        "open",
        "input",
        "__import__",
        "globals",
        "locals",
        "vars",
        "breakpoint",
        "exit",
        "quit",
        "help",
    ]
)
FORBIDDEN_TORCH = frozenset({"load", "save", "hub", "from_file", "load_state_dict_from_url"})
ALLOWED_DUNDERS = frozenset(
    [
        "__init__",
        "__name__",
        "__class__",
        "__len__",
        "__call__",
        "__getitem__",
        "__iter__",
        "__next__",
        "__repr__",
        "__doc__",
        "__all__",
        "__version__",
        "__post_init__",
        "__annotations__",
        "__enter__",
        "__exit__",
        "__setitem__",
        "__constants__",
        "__hash__",
        "__eq__",
        "__str__",
    ]
)
NET_METHODS = ("__init__", "forward", "train_setup", "learn")
INIT_ARGUMENTS = ("in_shape", "out_shape", "prm", "device")


def check(code: str) -> Verdict | None:
    """The first static fault of a source, in ladder order, or ``None`` if it may be run."""
    if len(code.encode("utf-8", "replace")) > MAX_SOURCE_BYTES:
        return Verdict(Outcome.SYNTAX_ERROR, f"source is longer than {MAX_SOURCE_BYTES} bytes")
    tree = parse(code)
    if isinstance(tree, Verdict):
        return tree
    if fault := contract_fault(tree):
        return Verdict(Outcome.CONTRACT_VIOLATION, one_line(fault))
    if fault := next(policy_faults(ast.walk(tree)), None):
        return Verdict(Outcome.FORBIDDEN_CODE, one_line(fault))
    return None


def parse(code: str) -> ast.Module | Verdict:
    """The syntax tree, or the verdict if the source does not parse or is nested too deeply."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(code)
    except SyntaxError as error:
        return Verdict(Outcome.SYNTAX_ERROR, f"SyntaxError: {error.msg} (line {error.lineno})")
    except ValueError as error:  # null bytes, lone surrogates
        return Verdict(Outcome.SYNTAX_ERROR, f"SyntaxError: {error}")
    except (RecursionError, MemoryError):
        return Verdict(Outcome.SYNTAX_ERROR, "SyntaxError: nested too deeply to parse")
    if _is_deep(tree):
        return Verdict(Outcome.SYNTAX_ERROR, f"nested too deeply: more than {MAX_DEPTH} levels")
    return tree


def _is_deep(tree: ast.Module) -> bool:
    level: list[ast.AST] = [tree]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return bool(level)


def contract_fault(tree: ast.Module) -> str | None:
    """The first breach of the candidate contract, or ``None``."""
    functions = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    if "Net" not in classes:
        return "no class Net at module level"
    net = classes["Net"]
    if not net.bases:
        return "class Net has no base; expected class Net(nn.Module)"
    methods = _methods(net, classes)
    if missing := [name for name in NET_METHODS if name not in methods]:
        return f"class Net lacks {', '.join(missing)}"
    if fault := _init_fault(methods["__init__"]):
        return fault
    if "supported_hyperparameters" not in functions:
        return "no function supported_hyperparameters at module level"
    return None


def _methods(net: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> dict[str, ast.FunctionDef]:
    """Methods of a class, and of its base classes in the same module."""
    found: dict[str, ast.FunctionDef] = {}
    queue, seen = [net], {net.name}
    while queue:
        node = queue.pop(0)
        for item in node.body:
            if isinstance(item, ast.FunctionDef):
                found.setdefault(item.name, item)
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in classes and base.id not in seen:
                seen.add(base.id)
                queue.append(classes[base.id])
    return found


def _init_fault(init: ast.FunctionDef) -> str | None:
    """The harness calls ``Net(in_shape, out_shape, prm, device)`` by position."""
    names = [a.arg for a in init.args.posonlyargs + init.args.args][1:]
    required = len(names) - len(init.args.defaults)
    required_by_name = sum(default is None for default in init.args.kw_defaults)
    accepts = len(names) >= len(INIT_ARGUMENTS) or init.args.vararg is not None
    if not accepts or required > len(INIT_ARGUMENTS) or required_by_name:
        return f"Net.__init__ takes ({', '.join(names)}); expected ({', '.join(INIT_ARGUMENTS)})"
    return None


def policy_faults(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The forbidden constructs among these nodes."""
    for node in nodes:
        match node:
            case ast.Import() | ast.ImportFrom():
                yield from _import_faults(node)
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
                yield f"call of {name} (line {node.lineno})"
            case ast.Attribute(value=ast.Name(id="torch"), attr=attr) if attr in FORBIDDEN_TORCH:
                yield f"torch.{attr} (line {node.lineno})"
            case ast.Attribute(attr=name) | ast.Name(id=name) if _is_closed_dunder(name):
                yield f"{name} (line {node.lineno})"
            case ast.keyword(arg="pretrained", value=ast.Constant(value=True)):
                yield f"pretrained=True (line {node.value.lineno})"
            case _:
                pass


def _import_faults(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    if isinstance(node, ast.ImportFrom) and node.level:
        yield f"relative import (line {node.lineno})"
    for name in (prefix + alias.name for alias in node.names):
        allowed = name.partition(".")[0] in ALLOWED_IMPORTS
        if not allowed or name.startswith(FORBIDDEN_MODULES):
            yield (
                f"import of {name} (line {node.lineno}); "
                "allowed are torch, numpy and pure Python modules"
            )


def _is_closed_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__") and name not in ALLOWED_DUNDERS
