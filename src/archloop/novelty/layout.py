"""Rules for operators that move, cut, join or copy elements without computing with them.

They unify ``flatten`` and ``view``, ``split`` and slices, nested and flat concatenations, and
remove copies.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from archloop.novelty.arguments import as_index, as_ints
from archloop.novelty.canonical import Call, Canonical, Input

Rule = Callable[[Canonical, Call], int | None]
"""A rule returns the index of a node, or ``None`` if it does not apply."""

_NOTHING = frozenset(
    {"detach", "alias", "clone", "contiguous", "lift", "lift_fresh", "lift_fresh_copy", "_to_copy"}
)
_RESHAPES = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
    }
)
_PERMUTATIONS = frozenset(
    {"t", "transpose", "permute", "numpy_T", "swapaxes", "swapdims", "movedim"}
)

_MOST_JOINED = 128
"""Most inputs of a merged concatenation: without a limit, doubling ``cat((x, x))`` twenty times
would have a million inputs."""


def _nothing(c: Canonical, call: Call) -> int | None:
    place = call.input()
    return None if place is None else c.cast(place, call.dtype)


def _reshape(c: Canonical, call: Call) -> int | None:
    place = call.input()
    if place is None or c.nodes[place].dtype != call.dtype:
        return None
    return c.reshape(place, call.shape)


def _permute(c: Canonical, call: Call) -> int | None:
    place = call.input()
    dims = None if place is None else _order(call, len(c.nodes[place].shape))
    return None if place is None or dims is None else c.permute(place, dims)


def _order(call: Call, rank: int) -> list[int] | None:
    """The dimensions after a permutation."""
    if "dims" in call.arguments:
        dims = as_ints(call.arguments["dims"])
    else:
        names = [n for n in ("dim0", "dim1", "axis0", "axis1") if n in call.arguments]
        swapped = as_ints([call.arguments[n] for n in names])
        dims = list(range(rank))
        if not names and rank >= 2 and call.operator == "t":
            swapped = [0, 1]
        if swapped is None or len(swapped) != 2 or not all(-rank <= d < rank for d in swapped):
            return list(range(rank)) if call.operator == "t" and rank < 2 else None
        dims[swapped[0]], dims[swapped[1]] = dims[swapped[1]], dims[swapped[0]]
    if dims is None or not all(-rank <= d < rank for d in dims):
        return None
    dims = [d % rank for d in dims]
    return dims if sorted(dims) == list(range(rank)) else None


def _expand(c: Canonical, call: Call) -> int | None:
    place = call.input()
    return None if place is None else c.expand(place, call.shape)


def _copy(c: Canonical, call: Call) -> int | None:
    place = call.input("src")
    return None if place is None else c.cast(c.expand(place, call.shape), call.dtype)


def _scatter(c: Canonical, call: Call) -> int | None:
    """A write through a view that shows all of its base replaces the base."""
    base, view = call.input("base"), call.input("view")
    name = call.operator.removesuffix("_scatter")
    if base is None or view is None:
        return None
    if name in _NOTHING or name in _RESHAPES:
        return c.reshape(view, call.shape)
    if name in _PERMUTATIONS:
        call = Call(name, call.arguments, 0, call.shape, call.dtype)
        dims = _order(call, len(c.nodes[base].shape))
        if dims is not None and len(c.nodes[view].shape) == len(dims):
            return c.permute(view, [dims.index(d) for d in range(len(dims))])
    if c.nodes[view].shape == c.nodes[base].shape and name in ("slice", "expand"):
        return view
    return None


def _cat(c: Canonical, call: Call) -> int | None:
    tensors, rank = call.arguments.get("tensors"), len(call.shape)
    dim = as_index(call.arguments.get("dim", 0), rank)
    if dim is None or not isinstance(tensors, list) or not tensors:
        return None
    if not all(isinstance(t, Input) for t in tensors):
        return None
    places = [t.place for t in tensors]
    if call.operator == "stack":
        part = (*call.shape[:dim], 1, *call.shape[dim + 1 :])
        places = [c.reshape(place, part) for place in places]
    joined: list[int] = []
    for place in places:
        node = c.nodes[place]
        nested = node.operator == "cat" and json.loads(node.attributes)["dim"] == dim
        parts = node.inputs if nested else (place,)
        if len(joined) + len(parts) > _MOST_JOINED:
            joined = places
            break
        joined.extend(parts)
    if len(joined) == 1:
        return joined[0]
    return c.add("cat", {"dim": dim}, tuple(joined), call.shape, call.dtype)


def _split(c: Canonical, call: Call) -> int | None:
    """One part of a tensor that is cut along a dimension, as a slice."""
    place = call.input()
    if place is None:
        return None
    source = c.nodes[place].shape
    dim = as_index(call.arguments.get("dim", 0), len(source))
    if dim is None or type(source[dim]) is not int:
        return None
    if call.operator in ("unbind", "select"):
        index = as_index(call.arguments.get("index", call.index), source[dim])
        if index is None:
            return None
        return c.reshape(c.slice(place, dim, index, index + 1), call.shape)
    size = call.arguments.get("split_size", call.arguments.get("split_sizes"))
    if isinstance(size, list):
        sizes = as_ints(size[: call.index + 1])
        if sizes is None or len(sizes) <= call.index:
            return None
        start, end = sum(sizes[:-1]), sum(sizes)
    elif type(size) is int:
        start, end = size * call.index, min(size * (call.index + 1), source[dim])
    else:
        return None
    return c.slice(place, dim, start, end)


def _slice(c: Canonical, call: Call) -> int | None:
    place = call.input()
    if place is None:
        return None
    if c.nodes[place].shape == call.shape:
        return place if call.arguments.get("step", 1) == 1 else None
    source = c.nodes[place].shape
    dim = as_index(call.arguments.get("dim", 0), len(source))
    if dim is None or type(source[dim]) is not int or call.arguments.get("step", 1) != 1:
        return None
    start, end = call.arguments.get("start"), call.arguments.get("end")
    start, end = 0 if start is None else start, source[dim] if end is None else end
    if not isinstance(start, int | float) or not isinstance(end, int | float):
        return None
    first, last, _ = slice(int(start), int(end)).indices(source[dim])
    return c.slice(place, dim, first, last)


def _pad(c: Canonical, call: Call) -> int | None:
    place, pads = call.input(), as_ints(call.arguments.get("pad"))
    if place is None or pads is None or any(pads):
        return None
    return place if c.nodes[place].shape == call.shape else None


LAYOUT: dict[str, Rule] = {
    **dict.fromkeys(_NOTHING, _nothing),
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(_PERMUTATIONS, _permute),
    **dict.fromkeys(("cat", "stack"), _cat),
    **dict.fromkeys(
        ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"), _split
    ),
    **dict.fromkeys(("unbind", "select"), _split),
    **dict.fromkeys(
        (f"{n}_scatter" for n in (*_NOTHING, *_RESHAPES, *_PERMUTATIONS, "slice", "expand")),
        _scatter,
    ),
    "constant_pad_nd": _pad,
    "copy": _copy,
    "expand": _expand,
    "slice": _slice,
}
