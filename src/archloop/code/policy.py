"""Static checks of a source: it parses, keeps the contract, uses only what networks need.

Nothing is executed, and what does nothing for the network (:mod:`archloop.code.noise`) is not held
against it. These checks are a cheap first filter that gives a clear error line; the
boundary against hostile code is the sandbox, not this module.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator

from archloop.code.allowed import ALLOWED_IMPORTS, is_allowed
from archloop.code.noise import without_noise
from archloop.code.reading import BYTE_ORDER_MARK
from archloop.text import one_line
from archloop.types import Outcome, Verdict

MAX_SOURCE_BYTES = 64 * 1024
"""Longer sources are refused: the longest LEMUR network has 40 kB."""
MAX_DEPTH = 100
"""Most levels of a syntax tree: ``ast.unparse`` needs up to six nested calls for a level (a
dictionary), and Python allows a thousand. The deepest network of the packaged corpus has 14."""

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
    """The first static fault of a source, in ladder order, or ``None`` if it may be run.

    What may be run is the source :func:`archloop.code.noise.without_noise`.
    """
    if len(code.encode("utf-8", "replace")) > MAX_SOURCE_BYTES:
        return Verdict(Outcome.SYNTAX_ERROR, f"source is longer than {MAX_SOURCE_BYTES} bytes")
    tree = parse(code)
    if isinstance(tree, Verdict):
        return tree
    if fault := contract_fault(tree):
        return Verdict(Outcome.CONTRACT_VIOLATION, one_line(fault))
    judged = parse(without_noise(code))
    assert isinstance(judged, ast.Module), "it parsed with the noise"
    if fault := next(policy_faults(ast.walk(judged)), None):
        return Verdict(Outcome.FORBIDDEN_CODE, one_line(fault))
    return None


def unreadable(fault: str | None) -> Verdict | None:
    """The verdict on a file that is no text, or ``None`` if it is."""
    return None if fault is None else Verdict(Outcome.SYNTAX_ERROR, f"SyntaxError: {fault}")


def parse(code: str) -> ast.Module | Verdict:
    """The syntax tree, or the verdict if the source does not parse or is nested too deeply."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(code.removeprefix(BYTE_ORDER_MARK))
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
    """The first certain breach of the candidate contract, or ``None``.

    Methods may be functions, assigned in the class, after it or in ``__init__``, or come from a
    base. Where the source alone does not say, the sandbox looks at the class itself.
    """
    bound = _bound_names(tree.body)
    if "Net" not in bound:
        return "no class Net at module level"
    classes = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
    net = classes.get("Net")
    if net is not None:
        if not net.bases:
            return "class Net has no base; expected class Net(nn.Module)"
        methods, is_known = _methods(net, classes)
        given = methods.keys() | _assigned_outside(tree)
        missing = [name for name in NET_METHODS if name not in given]
        if missing and is_known:
            return f"class Net lacks {', '.join(missing)}"
        init = methods.get("__init__")
        if isinstance(init, ast.FunctionDef) and (fault := _init_fault(init)):
            return fault
    if "supported_hyperparameters" not in bound:
        return "no function supported_hyperparameters at module level"
    return None


def _bound_names(body: Iterable[ast.stmt]) -> dict[str, ast.AST]:
    """Names that statements define or assign, in branches too, each with its first definition."""
    found: dict[str, ast.AST] = {}
    todo: list[ast.AST] = [*body]
    while todo:
        node = todo.pop(0)
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.setdefault(node.name, node)
            case ast.Assign(targets=targets):
                names = [n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
                for name in names:
                    found.setdefault(name.id, node.value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found.setdefault(name, value)
            case ast.Import() | ast.ImportFrom():
                for alias in node.names:
                    found.setdefault(alias.asname or alias.name, node)
            case ast.expr() | ast.expr_context():
                pass
            case _:
                todo += ast.iter_child_nodes(node)
    return found


def _methods(
    net: ast.ClassDef, classes: dict[str, ast.ClassDef]
) -> tuple[dict[str, ast.AST], bool]:
    """What a class and its bases in the same module define; whether that is certainly all."""
    found: dict[str, ast.AST] = {}
    queue, seen, is_known = [net], {net.name}, True
    while queue:
        node = queue.pop(0)
        is_known = is_known and not node.decorator_list and not node.keywords
        found = _bound_names(node.body) | found
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in classes:
                if base.id not in seen:
                    seen.add(base.id)
                    queue.append(classes[base.id])
            elif ast.unparse(base).rpartition(".")[2] in ("Sequential", "ModuleList"):
                for name in ("__init__", "forward"):
                    found.setdefault(name, base)
            elif ast.unparse(base) not in ("nn.Module", "torch.nn.Module", "Module", "object"):
                is_known = False
    return found, is_known


def _assigned_outside(tree: ast.Module) -> set[str]:
    """Attributes that are assigned to ``Net`` or to ``self``, by ``setattr`` too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="Net" | "self"), attr=name, ctx=ast.Store()):
                found.add(name)
            case ast.Call(
                func=ast.Name(id="setattr"), args=[ast.Name(id="Net" | "self"), name_, _]
            ):
                # A name that is computed may be any of them.
                known = isinstance(name_, ast.Constant)
                found |= {str(name_.value)} if known else set(NET_METHODS)  # type: ignore[attr-defined]
            case _:
                pass
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
    """The forbidden constructs among these nodes: what, where, why, and what is allowed."""
    for node in nodes:
        match node:
            case ast.Import() | ast.ImportFrom():
                yield from _import_faults(node)
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
                yield f"call of {name} (line {node.lineno}) is forbidden: {_why_no_call(name)}"
            case ast.Attribute(value=ast.Name(id="torch"), attr=attr) if attr in FORBIDDEN_TORCH:
                yield f"torch.{attr} (line {node.lineno}) is forbidden: {_FROM_SCRATCH}"
            case ast.Attribute(attr=name) | ast.Name(id=name) if _is_closed_dunder(name):
                yield f"{name[:80]} (line {node.lineno}) is forbidden: {_why_no_dunder(name)}"
            case ast.keyword(arg="pretrained", value=ast.Constant(value=True)):
                yield f"pretrained=True (line {node.value.lineno}) is forbidden: {_FROM_SCRATCH}"
            case _:
                pass


_FROM_SCRATCH = (
    "weights are trained here from scratch, never read or written; allowed are torch.nn's layers "
    "and torch.nn.init"
)
_INSTEAD = {
    "tqdm": "loop over train_data itself",
    "torchvision": "write the layers with torch.nn",
    "timm": "write the layers with torch.nn",
    "einops": "use reshape and permute",
    "time": "training must not depend on the clock",
    "datetime": "training must not depend on the clock",
}
"""What to write in place of a module."""


def _import_faults(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    if isinstance(node, ast.ImportFrom) and node.level:
        yield f"relative import (line {node.lineno}) is forbidden: a network is a single file"
    for name in (prefix + alias.name for alias in node.names):
        if not is_allowed(name):
            top = name.partition(".")[0]
            advice = f"{_INSTEAD[top]}; " if top in _INSTEAD else ""
            why = (
                "it loads files or starts processes"
                if top in ALLOWED_IMPORTS
                else "a network needs no other module"
            )
            yield (
                f"import of {name[:80]} (line {node.lineno}) is forbidden: {why}; {advice}"
                f"allowed are {', '.join(m for m in ALLOWED_IMPORTS if m != '__future__')}"
            )


def _why_no_call(name: str) -> str:
    if name in ("open", "input", "breakpoint", "help"):
        return "a network reads no files and no input; it gets its images from train_data"
    if name in ("exit", "quit"):
        return "it ends the process; return, or raise an error"
    if name in ("globals", "locals", "vars"):
        return "it reaches names that this check cannot see; use attributes of self, or getattr()"
    return "it runs code that this check cannot see; write that code out"


def _why_no_dunder(name: str) -> str:
    if name in ("__getattr__", "__getattribute__", "__setattr__", "__delattr__", "__dict__"):
        return (
            "it reaches attributes that this check cannot see; allowed are getattr() and setattr() "
            "with self, a property, or the plain name (self.inner.weight)"
        )
    return (
        "it reaches Python's internals; allowed are plain names and __init__, __call__, __len__, "
        "__iter__, __next__, __getitem__, __setitem__, __class__, __name__, __repr__, __enter__, "
        "__exit__"
    )


def _is_closed_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__") and name not in ALLOWED_DUNDERS
