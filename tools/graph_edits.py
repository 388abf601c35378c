"""Small edits of a network's syntax tree: some keep what it computes, some do not.

Each takes a tree that is its own, those that change something a source of random choices too, and
gives whether it found something to edit. Whether an edit did what it is meant to is not decided here: ``graph_pairs.py``
runs both networks.
"""

from __future__ import annotations

import ast
import builtins
import copy
import random
from collections.abc import Callable, Iterator

import torch
from torch import nn

Keeping = Callable[[ast.Module], bool]
Changing = Callable[[ast.Module, random.Random], bool]
CONTRACT = {"in_shape", "out_shape", "prm", "device", "train_setup", "learn", "training"}
TAKEN = {*dir(nn.Module), *dir(torch.Tensor), *dir(torch), *dir(nn), *dir(nn.functional), *CONTRACT}
TENSORS = {"x", "out", "identity", "residual", "shortcut", "y", "res"}
ACTIVATIONS = {"ReLU": "ELU", "GELU": "ReLU", "SiLU": "ReLU", "LeakyReLU": "ELU", "Sigmoid": "Tanh"}
ACTIVATIONS |= {"relu": "elu", "gelu": "relu", "silu": "relu", "sigmoid": "tanh", "ReLU6": "ELU"}
POOLS = {"MaxPool2d": "AvgPool2d", "AvgPool2d": "MaxPool2d"}
POOLS |= {"max_pool2d": "avg_pool2d", "avg_pool2d": "max_pool2d"}
POOLS |= {"AdaptiveAvgPool2d": "AdaptiveMaxPool2d", "adaptive_avg_pool2d": "adaptive_max_pool2d"}


def classes(tree: ast.Module) -> list[ast.ClassDef]:
    return [n for n in tree.body if isinstance(n, ast.ClassDef)]


def methods(tree: ast.Module, name: str) -> list[ast.FunctionDef]:
    return [
        f
        for c in classes(tree)
        for f in c.body
        if isinstance(f, ast.FunctionDef) and f.name == name
    ]


def net_forward(tree: ast.Module) -> ast.FunctionDef | None:
    for c in classes(tree):
        if c.name == "Net":
            return next(
                (f for f in c.body if isinstance(f, ast.FunctionDef) and f.name == "forward"), None
            )
    return None


def calls(tree: ast.AST, *names: str) -> list[ast.Call]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and called(n) in names]


def called(node: ast.AST) -> str | None:
    if isinstance(node, ast.Call):
        f = node.func
        return f.attr if isinstance(f, ast.Attribute) else f.id if isinstance(f, ast.Name) else None
    return None


def blocks(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(tree):
        for field in ("body", "orelse"):
            block = getattr(node, field, None)
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                yield block


def step(node: ast.stmt) -> tuple[str, ast.Call] | None:
    """``x = f(x)`` or ``x = f(y)`` with one call."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Call):
            return target.id, node.value
    return None


def own_attribute(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr if node.value.id == "self" else None
    return None


def expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def statements(text: str) -> list[ast.stmt]:
    return ast.parse(text).body


# Edits that keep what a network computes.


def rename_attributes(tree: ast.Module) -> bool:
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    names = (
        {
            name
            for n in ast.walk(tree)
            if isinstance(getattr(n, "ctx", None), ast.Store) and (name := own_attribute(n))
        }
        - TAKEN
        - {t for t in texts if isinstance(t, str)}
    )
    new = {name: f"part_{i}" for i, name in enumerate(sorted(names))}
    for n in ast.walk(tree):
        if isinstance(n, ast.Attribute) and n.attr in new:
            n.attr = new[n.attr]
    return bool(new)


def rename_classes(tree: ast.Module) -> bool:
    names = [c.name for c in classes(tree) if c.name != "Net"]
    new = {name: f"Piece{chr(65 + i)}" for i, name in enumerate(names)}
    for n in ast.walk(tree):
        if isinstance(n, ast.ClassDef) and n.name in new:
            n.name = new[n.name]
        elif isinstance(n, ast.Name) and n.id in new:
            n.id = new[n.id]
    return bool(new)


def rename_variables(tree: ast.Module) -> bool:
    found = False
    for f in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
        inner = [
            n for n in ast.walk(f) if n is not f and isinstance(n, ast.FunctionDef | ast.Lambda)
        ]
        if inner or any(isinstance(n, ast.Global | ast.Nonlocal) for n in ast.walk(f)):
            continue
        stored = {
            n.id for n in ast.walk(f) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        arguments = {a.arg for a in ast.walk(f) if isinstance(a, ast.arg)}
        if f.name == "forward" and not f.args.kwonlyargs and not f.args.defaults:
            stored |= {a.arg for a in f.args.args if a.arg != "self"}
            arguments -= stored
        new = {
            n: f"value_{i}" for i, n in enumerate(sorted(stored - arguments - set(dir(builtins))))
        }
        found |= bool(new)
        for n in ast.walk(f):
            if isinstance(n, ast.Name) and n.id in new:
                n.id = new[n.id]
            elif isinstance(n, ast.arg) and n.arg in new:
                n.arg = new[n.arg]
    return found


def reorder_statements(tree: ast.Module) -> bool:
    """Layers are defined in reverse where neighbours do not need each other."""
    found = False
    for f in methods(tree, "__init__"):
        for block in blocks(f):
            for end in range(len(block), 0, -1):
                start = end
                while start and _independent(block[start - 1], block[start:end]):
                    start -= 1
                if end - start > 1:
                    block[start:end] = block[start:end][::-1]
                    found = True
                    break
    return found


def _independent(node: ast.stmt, others: list[ast.stmt]) -> bool:
    def simple(n: ast.stmt) -> bool:
        return (
            isinstance(n, ast.Assign)
            and len(n.targets) == 1
            and own_attribute(n.targets[0]) is not None
            and isinstance(n.value, ast.Call)
            and not any(own_attribute(m) for m in ast.walk(n.value))
        )

    return simple(node) and all(
        simple(o) and ast.dump(o.targets[0]) != ast.dump(node.targets[0]) for o in others
    )


def wrap_in_sequential(tree: ast.Module) -> bool:
    found = False
    for c in classes(tree):
        for n in _layers(c):
            if called(n.value) in ("Conv2d", "Linear", "BatchNorm2d") and _only_called(c, n):
                n.value = ast.Call(expression("nn.Sequential"), [n.value], [])
                found = True
    return found


def sequential_to_attributes(tree: ast.Module) -> bool:
    found = False
    for c in classes(tree):
        for n in _layers(c):
            name, value = own_attribute(n.targets[0]), n.value
            plain = called(value) == "Sequential" and value.args and not value.keywords
            if not plain or any(isinstance(a, ast.Starred) for a in value.args):
                continue
            if any(called(a) == "OrderedDict" for a in value.args) or not _only_called(c, n):
                continue
            parts = [f"{name}_{i}" for i in range(len(value.args))]
            for block in blocks(c):
                if n in block:
                    at = block.index(n)
                    block[at : at + 1] = [
                        ast.Assign([ast.Attribute(ast.Name("self"), p, ast.Store())], a, lineno=0)
                        for p, a in zip(parts, value.args, strict=True)
                    ]
            for call in ast.walk(c):
                if isinstance(call, ast.Call) and own_attribute(call.func) == name:
                    for part in parts[:-1]:
                        call.args = [ast.Call(expression(f"self.{part}"), call.args, [])]
                    call.func = expression(f"self.{parts[-1]}")
            found = True
    return found


def _layers(c: ast.ClassDef) -> list[ast.Assign]:
    return [
        n
        for f in c.body
        if isinstance(f, ast.FunctionDef) and f.name == "__init__"
        for n in f.body
        if isinstance(n, ast.Assign)
        and len(n.targets) == 1
        and own_attribute(n.targets[0])
        and isinstance(n.value, ast.Call)
    ]


def _only_called(c: ast.ClassDef, n: ast.Assign) -> bool:
    """The layer is made once, and used in one way: ``self.layer(...)``."""
    name = own_attribute(n.targets[0])
    uses = [m for m in ast.walk(c) if own_attribute(m) == name]
    called_ = [m for m in ast.walk(c) if isinstance(m, ast.Call) and own_attribute(m.func) == name]
    return bool(called_) and len(uses) == len(called_) + 1


def module_or_function(tree: ast.Module) -> bool:
    """``self.act(x)`` becomes ``torch.relu(x)``, and a function becomes a module."""
    found = False
    for c in classes(tree):
        for n in _layers(c):
            if called(n.value) == "ReLU" and _only_called(c, n):
                name = own_attribute(n.targets[0])
                for call in ast.walk(c):
                    if isinstance(call, ast.Call) and own_attribute(call.func) == name:
                        call.func = expression("torch.nn.functional.relu")
                        found = True
    if not found:
        for call in calls(tree, "relu"):
            of_library = ("F.relu", "torch.relu", "nn.functional.relu")
            if len(call.args) == 1 and ast.unparse(call.func) in of_library:
                call.func, call.keywords = expression("nn.ReLU()"), []
                found = True
    return found


def dead_layers(tree: ast.Module) -> bool:
    for f in methods(tree, "__init__")[-1:]:
        f.body += statements("self.extra = nn.Linear(7, 5)\nself.more = nn.Conv2d(3, 5, 3)")
    return bool(methods(tree, "__init__"))


def dead_computation(tree: ast.Module) -> bool:
    f = net_forward(tree)
    if f is None or len(f.args.args) < 2:
        return False
    x = f.args.args[1].arg
    f.body[0:0] = statements(f"unused = torch.tanh({x}).mean() * 3\nunused = unused + {x}")
    return True


def comments(tree: ast.Module) -> bool:
    """Docstrings; ``graph_pairs.py`` writes comments into the text of this one."""
    for n in ast.walk(tree):
        if isinstance(n, ast.ClassDef | ast.FunctionDef):
            n.body[0:0] = statements(f"'''The {n.name} part of a novel architecture.'''")
    return True


def flatten_form(tree: ast.Module) -> bool:
    found = False
    for f in methods(tree, "forward"):
        for call in ast.walk(f):
            name = called(call)
            if name in ("view", "reshape") and len(call.args) == 2:
                if ast.unparse(call.args[1]) == "-1" and "(" in ast.unparse(call.args[0]):
                    call.args = [call.func.value, expression("1")]
                    call.func = expression("torch.flatten")
                    found = True
            elif (
                name == "flatten"
                and ast.unparse(call.func) == "torch.flatten"
                and len(call.args) == 2
            ):
                x = call.args[0]
                if isinstance(x, ast.Name) and ast.unparse(call.args[1]) == "1":
                    call.func = ast.Attribute(x, "view")
                    call.args = [expression(f"{x.id}.shape[0]"), expression("-1")]
                    found = True
    return found


def roll_into_loops(tree: ast.Module) -> bool:
    for f in methods(tree, "forward"):
        for block in blocks(f):
            for i in range(len(block) - 1):
                a, b = step(block[i]), step(block[i + 1])
                if a and b and a[0] == b[0] and _applies(a) and _applies(b):
                    loop = f"for layer in (0, 0):\n    {a[0]} = layer({a[0]})"
                    node = statements(loop)[0]
                    node.iter.elts = [a[1].func, b[1].func]
                    block[i : i + 2] = [node]
                    return True
    return False


def _applies(found: tuple[str, ast.Call]) -> bool:
    name, call = found
    one = len(call.args) == 1 and not call.keywords and ast.unparse(call.args[0]) == name
    return one and own_attribute(call.func) is not None


def operators_without_effect(tree: ast.Module) -> bool:
    f = net_forward(tree)
    if f is None or not isinstance(f.body[-1], ast.Return) or len(f.args.args) < 2:
        return False
    x = f.args.args[1].arg
    f.body[-1].value = ast.Call(expression("nn.Identity()"), [f.body[-1].value], [])
    f.body[0:0] = statements(f"{x} = ({x} * 1.0 + 0).contiguous().clone()")
    return True


def forward_by_helper(tree: ast.Module) -> bool:
    for c in classes(tree):
        f = net_forward(tree)
        if c.name == "Net" and f is not None and len(f.args.args) == 2:
            f.name = "compute_all"
            c.body += statements("def forward(self, batch):\n    return self.compute_all(batch)")
            return True
    return False


def in_place(tree: ast.Module) -> bool:
    found = calls(tree, "ReLU", "SiLU", "ReLU6", "ELU", "LeakyReLU")
    for call in found:
        was = any(k.arg == "inplace" for k in call.keywords)
        call.keywords = [k for k in call.keywords if k.arg != "inplace"]
        if not was and not (called(call) == "ReLU" and call.args):
            call.keywords.append(ast.keyword("inplace", ast.Constant(True)))
    return bool(found)


def swap_summands(tree: ast.Module) -> bool:
    found = _sums(tree)
    for n in found:
        n.left, n.right = n.right, n.left
    return bool(found)


def _sums(tree: ast.Module) -> list[ast.BinOp]:
    def is_tensor(n: ast.expr) -> bool:
        if isinstance(n, ast.Name):
            return n.id in TENSORS
        return isinstance(n, ast.Call) and own_attribute(n.func) is not None

    return [
        n
        for f in methods(tree, "forward")
        for n in ast.walk(f)
        if isinstance(n, ast.BinOp)
        and isinstance(n.op, ast.Add)
        and is_tensor(n.left)
        and is_tensor(n.right)
    ]


KEEPING: dict[str, Keeping] = {
    "attributes renamed": rename_attributes,
    "classes renamed": rename_classes,
    "variables renamed": rename_variables,
    "statements reordered": reorder_statements,
    "wrapped in Sequential": wrap_in_sequential,
    "Sequential to attributes": sequential_to_attributes,
    "module or function": module_or_function,
    "dead layers": dead_layers,
    "dead computation": dead_computation,
    "comments": comments,
    "flatten or view": flatten_form,
    "rolled into a loop": roll_into_loops,
    "operators without effect": operators_without_effect,
    "forward by another method": forward_by_helper,
    "in place or not": in_place,
    "summands swapped": swap_summands,
}


# Edits that change what a network computes, at one place.


def _number(call: ast.Call, place: int, name: str) -> ast.Constant | None:
    """A whole number among the arguments of a call."""
    given = call.args[place] if len(call.args) > place else None
    given = next((k.value for k in call.keywords if k.arg == name), given)
    return given if isinstance(given, ast.Constant) and type(given.value) is int else None


def _set(call: ast.Call, place: int, name: str, value: object) -> None:
    if len(call.args) > place:
        call.args[place] = ast.Constant(value)
        return
    call.keywords = [k for k in call.keywords if k.arg != name]
    call.keywords.append(ast.keyword(name, ast.Constant(value)))


def _pick(rng: random.Random, found: list) -> object:
    return rng.choice(found) if found else None


def kernel_size(tree: ast.Module, rng: random.Random) -> bool:
    call = _pick(rng, [c for c in calls(tree, "Conv2d") if _number(c, 2, "kernel_size")])
    if call is None:
        return False
    padding = _number(call, 4, "padding")
    _set(call, 2, "kernel_size", _number(call, 2, "kernel_size").value + 2)
    _set(call, 4, "padding", (padding.value if padding else 0) + 1)
    return True


def width(tree: ast.Module, rng: random.Random) -> bool:
    numbers = [
        n.value
        for c in calls(tree, "Conv2d", "Linear")
        for n in (_number(c, 0, "in_channels"), _number(c, 1, "out_channels"))
        if n and n.value > 7
    ]
    value = _pick(rng, sorted(set(numbers)))
    for f in methods(tree, "__init__"):
        for n in ast.walk(f):
            if isinstance(n, ast.Constant) and n.value == value and type(n.value) is int:
                n.value += 8
    return value is not None


def stride(tree: ast.Module, rng: random.Random) -> bool:
    call = _pick(rng, [c for c in calls(tree, "Conv2d") if _number(c, 2, "kernel_size")])
    if call is None:
        return False
    old = _number(call, 3, "stride")
    _set(call, 3, "stride", 1 if old and old.value > 1 else 2)
    return True


def dilation(tree: ast.Module, rng: random.Random) -> bool:
    found = [
        c for c in calls(tree, "Conv2d") if (n := _number(c, 2, "kernel_size")) and n.value == 3
    ]
    call = _pick(rng, [c for c in found if _number(c, 4, "padding")])
    if call is None:
        return False
    _set(call, 4, "padding", _number(call, 4, "padding").value + 1)
    _set(call, 5, "dilation", 2)
    return True


def activation(tree: ast.Module, rng: random.Random) -> bool:
    call = _pick(rng, calls(tree, *ACTIVATIONS))
    if call is None or not isinstance(call.func, ast.Attribute):
        return False
    call.func.value = expression("nn.functional" if call.func.attr[0].islower() else "nn")
    call.func.attr = ACTIVATIONS[call.func.attr]
    call.keywords = []
    call.args = call.args[:1] if call.func.attr[0].islower() else []
    return True


def pooling(tree: ast.Module, rng: random.Random) -> bool:
    call = _pick(rng, calls(tree, *POOLS))
    if call is None or not isinstance(call.func, ast.Attribute):
        return False
    call.func.attr = POOLS[call.func.attr]
    return True


def skip_added(tree: ast.Module, rng: random.Random) -> bool:
    found = [
        s
        for f in methods(tree, "forward")
        for b in blocks(f)
        for s in b
        if (p := step(s)) and len(p[1].args) == 1 and ast.unparse(p[1].args[0]) == p[0]
    ]
    node = _pick(rng, found)
    if node is None:
        return False
    node.value = ast.BinOp(node.value, ast.Add(), node.value.args[0])
    return True


def skip_removed(tree: ast.Module, rng: random.Random) -> bool:
    node = _pick(rng, _sums(tree))
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is node and node is not None:
                setattr(parent, name, rng.choice([node.left, node.right]))
                return True
    return False


def layers_swapped(tree: ast.Module, rng: random.Random) -> bool:
    found = [(c.args, i) for c in calls(tree, "Sequential") for i in range(len(c.args) - 1)]
    for f in methods(tree, "forward"):
        for block in blocks(f):
            steps = [step(s) for s in block]
            found += [
                (block, i)
                for i in range(len(block) - 1)
                if (a := steps[i])
                and (b := steps[i + 1])
                and a[0] == b[0]
                and _applies(a)
                and _applies(b)
            ]
    chosen = _pick(rng, found)
    if chosen is None:
        return False
    block, i = chosen
    block[i], block[i + 1] = block[i + 1], block[i]
    return True


def layer_repeated(tree: ast.Module, rng: random.Random) -> bool:
    """The same layer twice, with the same weights."""
    found = [
        (b, i)
        for f in methods(tree, "forward")
        for b in blocks(f)
        for i, s in enumerate(b)
        if (p := step(s)) and _applies(p)
    ]
    chosen = _pick(rng, found)
    if chosen is None:
        return False
    block, i = chosen
    block.insert(i, copy.deepcopy(block[i]))
    return True


def layer_removed(tree: ast.Module, rng: random.Random) -> bool:
    found = [
        (b, i)
        for f in methods(tree, "forward")
        for b in blocks(f)
        for i, s in enumerate(b)
        if (p := step(s)) and _applies(p)
    ]
    found += [(c.args, i) for c in calls(tree, "Sequential") for i in range(len(c.args)) if i]
    chosen = _pick(rng, found)
    if chosen is None:
        return False
    block, i = chosen
    del block[i]
    return True


def scaled(tree: ast.Module, rng: random.Random) -> bool:
    found = [s for f in methods(tree, "forward") for b in blocks(f) for s in b if step(s)]
    node = _pick(rng, found)
    if node is None:
        return False
    node.value = ast.BinOp(ast.Constant(0.5), ast.Mult(), node.value)
    return True


def bias(tree: ast.Module, rng: random.Random) -> bool:
    call = _pick(rng, calls(tree, "Conv2d", "Linear"))
    if call is None:
        return False
    had = any(k.arg == "bias" and ast.unparse(k.value) == "False" for k in call.keywords)
    call.keywords = [k for k in call.keywords if k.arg != "bias"]
    call.keywords.append(ast.keyword("bias", ast.Constant(had)))
    return True


def groups(tree: ast.Module, rng: random.Random) -> bool:
    found = [c for c in calls(tree, "Conv2d") if len(c.args) > 1]
    call = _pick(rng, [c for c in found if ast.unparse(c.args[0]) == ast.unparse(c.args[1])])
    if call is None or any(k.arg == "groups" for k in call.keywords):
        return False
    call.keywords.append(ast.keyword("groups", ast.Constant(2)))
    return True


CHANGING: dict[str, Changing] = {
    "kernel size": kernel_size,
    "width": width,
    "stride": stride,
    "dilation": dilation,
    "activation": activation,
    "pooling kind": pooling,
    "skip added": skip_added,
    "skip removed": skip_removed,
    "layers swapped": layers_swapped,
    "layer repeated": layer_repeated,
    "layer removed": layer_removed,
    "scale": scaled,
    "bias": bias,
    "groups": groups,
}
