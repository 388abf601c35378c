"""Rules that unify different ways of writing a computation.

``Linear`` and ``x @ w + b``; a pooling over everything and a mean; ``silu`` and ``x * sigmoid(x)``;
and those of ``layout.py``. Operators without an effect are removed, such as a product with one, or
a second ``relu``.

The rules hold for finite real numbers, not for floating-point rounding; ``0 * x`` is 0.
"""

from __future__ import annotations

import json

from archloop.novelty.arguments import as_ints, as_sizes, has_input
from archloop.novelty.canonical import UNORDERED, Call, Canonical, Input, Node
from archloop.novelty.layout import LAYOUT, Rule

_REDUCTIONS = frozenset(
    {"mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp", "linalg_vector_norm"}
)
_REPEATABLE = frozenset({"clamp", "abs", "floor", "ceil", "round", "sign"})
_FILLS = {
    "zeros": 0,
    "zeros_like": 0,
    "new_zeros": 0,
    "zero": 0,
    "ones": 1,
    "ones_like": 1,
    "new_ones": 1,
}
_FILLS_WITH = {"full": "fill_value", "full_like": "fill_value", "new_full": "fill_value"}
_FILLS_WITH |= {"fill": "value", "scalar_tensor": "s"}
_SAMPLED_IN_PLACE = frozenset(
    {"cauchy", "exponential", "geometric", "log_normal", "normal", "random", "uniform"}
)
_ELEMENTWISE = frozenset(
    {
        *("add", "sub", "mul", "div", "pow", "neg", "abs", "sqrt", "exp", "log", "sin", "cos"),
        *("relu", "hardtanh", "clamp", "clamp_min", "clamp_max", "threshold", "leaky_relu", "elu"),
        *("gelu", "silu", "mish", "sigmoid", "tanh", "hardswish", "hardsigmoid", "softplus"),
    }
)
"""Element-wise operators."""

_MOST_MOVES = 8
"""Most consecutive reshapes and permutations that an operator is moved before; each adds a node."""


def apply(c: Canonical, call: Call) -> int:
    """The index of the node for a traced operator's output."""
    moved = _moved(c, call)
    return _ruled(c, call) if moved is None else moved


def _ruled(c: Canonical, call: Call) -> int:
    rule = _RULES.get(call.operator)
    if rule is None:
        return c.general(call, call.operator)
    place = rule(c, call)
    # Rules read the attributes of nodes that rules made; an unknown operator must not look like
    # one.
    return c.general(call, f"{call.operator}*") if place is None else place


def _moved(c: Canonical, call: Call) -> int | None:
    """Move an element-wise operator before reshapes and permutations."""
    place = call.input()
    tensors = sum(isinstance(value, Input) for value in call.arguments.values())
    if place is None or tensors != 1 or call.operator not in _ELEMENTWISE:
        return None
    moves: list[Node] = []
    if c.nodes[place].shape == call.shape:
        while c.nodes[place].operator in ("reshape", "permute") and len(moves) < _MOST_MOVES:
            moves.append(c.nodes[place])
            place = c.nodes[place].inputs[0]
    if not moves:
        return None
    arguments = {**call.arguments, "self": Input(place)}
    result = _ruled(c, Call(call.operator, arguments, 0, c.nodes[place].shape, call.dtype))
    for node in reversed(moves):
        if node.operator == "reshape":
            result = c.reshape(result, node.shape)
        else:
            result = c.permute(result, json.loads(node.attributes)["dims"])
    return result


def _fill(c: Canonical, call: Call) -> int | None:
    value = _FILLS.get(call.operator)
    if value is None:
        value = call.arguments.get(_FILLS_WITH[call.operator])
    if not isinstance(value, int | float | str):
        return None
    return c.add("full", {"value": value}, (), call.shape, call.dtype)


def _sample(c: Canonical, call: Call) -> int | None:
    """The old values matter only if the distribution depends on a tensor."""
    attributes = call.plain("self")
    if has_input([*attributes.values()]):
        return None
    return c.add(call.operator, attributes, (), call.shape, call.dtype, unique=True)


def _arithmetic(c: Canonical, call: Call) -> int | None:
    """Sums and products without neutral elements; constants as numbers."""
    place, operator = call.input(), call.operator
    name = "exponent" if operator == "pow" else "other"
    other = call.arguments.get(name)
    if place is None or set(call.arguments) != {"self", name} or isinstance(other, list):
        return None
    if isinstance(other, Input):
        number = c.constant(other.place)
        if number is None and operator in UNORDERED and c.constant(place) is not None:
            number, place, other = c.constant(place), other.place, Input(place)
        if number is None or c.nodes[place].shape != call.shape:
            return _of_two(c, call, place, other.place)
        other = number
    same = (c.nodes[place].shape, c.nodes[place].dtype) == (call.shape, call.dtype)
    if same and type(other) in (int, float):
        if other == (0 if operator in ("add", "sub") else 1):
            return place
        if other == 0 and operator == "mul":
            return c.add("full", {"value": 0}, (), call.shape, call.dtype)
    return c.add(operator, {"other": other}, (place,), call.shape, call.dtype)


def _of_two(c: Canonical, call: Call, a: int, b: int) -> int:
    """A bias is added before a reshape that keeps the last dimension, as ``Linear`` may do."""
    for place, bias in ((a, b), (b, a)) if call.operator == "add" else ():
        node, size = c.nodes[place], c.nodes[bias].shape
        if node.operator != "reshape" or len(size) != 1:
            continue
        inner = c.nodes[node.inputs[0]]
        if len(inner.shape) > 1 and inner.shape[-1:] == node.shape[-1:] == size:
            total = c.add("add", {}, (node.inputs[0], bias), inner.shape, call.dtype)
            return c.reshape(total, call.shape)
    return c.add(call.operator, {}, (a, b), call.shape, call.dtype)


def _addmm(c: Canonical, call: Call) -> int | None:
    places = [call.input(name) for name in ("self", "mat1", "mat2")]
    bias, left, right = places
    if set(call.arguments) != {"self", "mat1", "mat2"}:
        return None
    if bias is None or left is None or right is None:
        return None
    product = c.add("mm", {}, (left, right), call.shape, call.dtype)
    return c.add("add", {}, (product, bias), call.shape, call.dtype)


def _mm(c: Canonical, call: Call) -> int | None:
    left, right = call.input(), call.input("mat2")
    if left is None or right is None:
        return None
    return c.add("mm", {}, (left, right), call.shape, call.dtype)


def _silu(c: Canonical, call: Call) -> int | None:
    place = call.input()
    if place is None:
        return None
    gate = c.add("sigmoid", {"self": "%"}, (place,), call.shape, call.dtype)
    return c.add("mul", {}, (place, gate), call.shape, call.dtype)


def _clamp(c: Canonical, call: Call) -> int | None:
    place = call.input()
    if place is None:
        return None
    plain, bounds = call.plain("self"), {}
    if call.operator == "relu":
        bounds = {"min": 0}
    elif call.operator == "hardtanh":
        bounds = {"min": plain.get("min_val", -1), "max": plain.get("max_val", 1)}
    elif call.operator == "threshold":
        if plain != {"threshold": 0, "value": 0}:
            return None
        bounds = {"min": 0}
    else:
        bounds = {k: v for k, v in plain.items() if v is not None}
    return _repeatable(
        c, Call("clamp", {"self": Input(place), **bounds}, 0, call.shape, call.dtype)
    )


def _repeatable(c: Canonical, call: Call) -> int | None:
    """Idempotent operators."""
    place = call.input()
    if place is None:
        return None
    node, attributes = c.nodes[place], call.plain("self")
    if has_input([*attributes.values()]):
        return None
    if node.operator == call.operator and node.attributes == json.dumps(attributes, sort_keys=True):
        return place
    return c.add(call.operator, attributes, (place,), call.shape, call.dtype)


def _reduce(c: Canonical, call: Call) -> int | None:
    place = call.input()
    if place is None:
        return None
    rank = len(c.nodes[place].shape)
    dims = call.arguments.get("dim")
    listed = list(range(rank)) if dims is None or dims == [] else as_ints(dims)
    if listed is None or not all(-rank <= d < rank for d in listed):
        return None
    other = call.plain("self", "dim", "keepdim")
    if has_input([*other.values()]):
        return None
    reduced = c.reduce(call.operator, place, sorted({d % rank for d in listed}), other)
    return c.reshape(c.cast(reduced, call.dtype), call.shape)


def _pool(c: Canonical, call: Call) -> int | None:
    """Pooling: explicit stride; global pooling is a reduction; pooling of size 1 is removed."""
    place = call.input()
    if place is None or call.index:
        return None
    source = c.nodes[place].shape[-2:]
    attributes = call.plain("self")
    kernel = as_sizes(attributes.pop("kernel_size", None), 2)
    padding = as_sizes(attributes.pop("padding", 0), 2)
    stride = as_sizes(attributes.pop("stride", None) or kernel, 2)
    if kernel is None or padding is None or stride is None or has_input([*attributes.values()]):
        return None
    if padding == [0, 0]:
        attributes.pop("count_include_pad", None)
        if tuple(kernel) == source and not attributes:
            name = "mean" if call.operator == "avg_pool2d" else "amax"
            rank = len(c.nodes[place].shape)
            return c.reshape(c.reduce(name, place, [rank - 2, rank - 1], {}), call.shape)
        if kernel == stride == [1, 1] and attributes.get("divisor_override") is None:
            return place
    attributes |= {"kernel": kernel, "stride": stride, "padding": padding}
    name = call.operator.removesuffix("_with_indices")
    return c.add(name, attributes, (place,), call.shape, call.dtype)


def _adaptive(c: Canonical, call: Call) -> int | None:
    place = call.input()
    if place is None or call.index or len(c.nodes[place].shape) != len(call.shape):
        return None
    if c.nodes[place].shape == call.shape:
        return place
    name = call.operator.removeprefix("_")
    if call.shape[-2:] == (1, 1):
        rank, kind = len(call.shape), "mean" if "avg" in name else "amax"
        return c.reshape(c.reduce(kind, place, [rank - 2, rank - 1], {}), call.shape)
    return c.add(name, {}, (place,), call.shape, call.dtype)


def _convolution(c: Canonical, call: Call) -> int | None:
    spatial, arguments = len(call.shape) - 2, dict(call.arguments)
    for name in ("stride", "padding", "dilation", "output_padding"):
        sizes = as_sizes(arguments.get(name), spatial)
        if sizes is None:
            return None
        arguments[name] = sizes
    call = Call("convolution", arguments, call.index, call.shape, call.dtype)
    return c.general(call, "convolution")


_RULES: dict[str, Rule] = {
    **LAYOUT,
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_REPEATABLE, _repeatable),
    **dict.fromkeys((*_FILLS, *_FILLS_WITH), _fill),
    **dict.fromkeys(_SAMPLED_IN_PLACE, _sample),
    **dict.fromkeys(("relu", "hardtanh", "threshold", "clamp", "clamp_min", "clamp_max"), _clamp),
    **dict.fromkeys(("add", "sub", "mul", "div", "pow"), _arithmetic),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool2d", "avg_pool2d"), _pool),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive),
    "addmm": _addmm,
    "convolution": _convolution,
    "mm": _mm,
    "silu": _silu,
}
