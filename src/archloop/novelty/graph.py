"""Graph novelty: whether two networks compute the same, and otherwise how different they are.

A traced graph (:mod:`archloop.sandbox.candidate.trace`) is brought into canonical form, and every
node gets a label by Weisfeiler-Lehman refinement in both directions, until no new classes appear.
Labels depend on the users of a node, so a shared layer differs from two layers. The multiset of
labels is the network's hash. Graphs that the refinement cannot tell apart share a hash: those with
shared layers of one shape used crosswise, such as A(A(x)) + B(B(x)) and B(A(x)) + A(B(x)).

For near matches, :func:`graph_shingles` gives labels of small neighbourhoods as a set of 64-bit
hashes, which :func:`archloop.novelty.tokens.jaccard` and the MinHash index treat like the shingles
of a text.

A graph is what :func:`checked` accepts: plain JSON, ``{"nodes": [...], "output": [node, index]}``,
a node being ``[operator, [[name, argument], ...], [[shape, type], ...]]``. Arguments are JSON
values in which ``{"input": [node, index]}`` is an output of an earlier node; sizes that grow with
the batch are written ``"2N"``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from archloop.errors import UsageError
from archloop.novelty.arguments import as_ints
from archloop.novelty.canonical import LEAVES, UNORDERED, Call, Canonical, Input, Node
from archloop.novelty.profile import profile
from archloop.novelty.rules import apply
from archloop.novelty.structure import checked_profile
from archloop.novelty.tokens import jaccard
from archloop.types import GraphSketch

if TYPE_CHECKING:
    from numpy.typing import NDArray

Graph = dict[str, Any]

MAX_NODES = 20_000
"""Most nodes of a graph that is compared."""
MAX_BYTES = 8 << 20
"""Most characters of a graph's JSON."""
MAX_REPEATED = 200_000
"""Most values among the arguments of all operators with several outputs, counted once for each
output: the canonical form writes them out for each."""
MAX_SHINGLES = 1 + 4 * MAX_NODES
"""Most shingles of a graph, see :func:`graph_shingles`."""
MAX_MOTIFS = 500
"""Most operator motifs of a network that are kept."""
MAX_MOTIF = 1_000
"""Longest name of one."""
_HASH = re.compile(r"[0-9a-f]{64}")
_MAX_DEPTH = 6
"""Deepest nesting of an argument; operators have lists of lists at most."""
_MAX_RANK = 64
_MAX_TEXT = 200
_MAX_SWEEPS = 6
"""Most refinement rounds; each visits the whole graph in both directions."""
_SIZE = re.compile(r"[1-9][0-9]{0,15}N")
_NEIGHBOURHOOD = 3
"""Rounds of a local label: a layer, the layers next to it, and those next to them."""


class GraphError(UsageError):
    """The value is not a traced graph."""


def parse(data: bytes) -> Graph:
    """Parse a graph from untrusted JSON.

    Raises:
        GraphError: It is too large, no JSON, or not a graph.
    """
    if len(data) > MAX_BYTES:
        raise GraphError(f"a graph of {len(data):,} bytes; at most {MAX_BYTES:,} are read")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise GraphError("not JSON") from None
    return checked(value)


def checked(value: Any) -> Graph:
    """Check that a value is a graph: references point backwards, every part has its type.

    Raises:
        GraphError: It is not.
    """
    if not isinstance(value, dict) or set(value) != {"nodes", "output"}:
        raise GraphError("not an object of nodes and output")
    nodes = value["nodes"]
    if not isinstance(nodes, list) or not 0 < len(nodes) <= MAX_NODES:
        raise GraphError(f"not a list of 1 to {MAX_NODES:,} nodes")
    outputs: list[int] = []
    for number, node in enumerate(nodes):
        try:
            outputs.append(_checked_node(node, outputs))
        except GraphError as error:
            raise GraphError(f"node {number}: {error}") from None
    _check_ref(value["output"], outputs)
    return value


def _checked_node(node: Any, outputs: list[int]) -> int:
    """Check a node; returns its number of outputs."""
    if not isinstance(node, list) or len(node) != 3:
        raise GraphError("not a list of operator, arguments and outputs")
    operator, arguments, results = node
    if not _is_name(operator):
        raise GraphError("the operator has no name")
    if not isinstance(arguments, list):
        raise GraphError("arguments are not a list")
    for argument in arguments:
        if not isinstance(argument, list) or len(argument) != 2 or not _is_name(argument[0]):
            raise GraphError("an argument is not a name and a value")
        _check_argument(argument[1], outputs, _MAX_DEPTH)
    if len({name for name, _ in arguments}) != len(arguments):
        raise GraphError("an argument is given twice")
    if not isinstance(results, list) or not results:
        raise GraphError("no outputs")
    if not all(_is_output(result) for result in results):
        raise GraphError("an output is not a shape and a type")
    return len(results)


def _is_name(value: Any, longest: int = _MAX_TEXT) -> bool:
    return isinstance(value, str) and 0 < len(value) <= longest and value.isprintable()


def _is_output(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], list)
        and len(value[0]) <= _MAX_RANK
        and all(_is_size(size) for size in value[0])
        and _is_name(value[1])
    )


def _is_size(value: Any) -> bool:
    if isinstance(value, str):
        return _SIZE.fullmatch(value) is not None
    return type(value) is int and 0 <= value < 2**53


def _check_argument(value: Any, outputs: list[int], depth: int) -> None:
    if isinstance(value, dict):
        if set(value) != {"input"}:
            raise GraphError("an object that is no input")
        _check_ref(value["input"], outputs)
    elif isinstance(value, list):
        if not depth:
            raise GraphError("an argument is nested too deeply")
        for item in value:
            _check_argument(item, outputs, depth - 1)
    elif not _is_plain(value):
        raise GraphError("an argument is no value, too long or too large")


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _MAX_TEXT
    if isinstance(value, float):
        return math.isfinite(value)
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, bool)


def _check_ref(value: Any, outputs: list[int]) -> None:
    if not isinstance(value, list) or len(value) != 2 or any(type(n) is not int for n in value):
        raise GraphError("a reference is not two numbers")
    number, index = value
    if not 0 <= number < len(outputs) or not 0 <= index < outputs[number]:
        raise GraphError("a reference to no earlier output")


def canonical(graph: Graph) -> list[Node]:
    """The nodes that reach the output, in canonical form and topological order, output last.

    Raises:
        GraphError: It would take too long, as of a graph that was made for that.
    """
    used = _used(graph)
    several = {number: len(outputs) for number, outputs in used.items() if len(outputs) > 1}
    repeated = sum(n * _size(graph["nodes"][number][1]) for number, n in several.items())
    if repeated > MAX_REPEATED:
        text = f"operators with several outputs have {repeated:,} arguments"
        raise GraphError(f"{text}; at most {MAX_REPEATED:,} are compared")
    c = Canonical()
    places: dict[tuple[int, int], int] = {}

    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            number, index = value["input"]
            return Input(places[number, index])
        return [placed(item) for item in value] if isinstance(value, list) else value

    for number, (operator, arguments, results) in enumerate(graph["nodes"]):
        if number not in used:
            continue
        given = {name: placed(value) for name, value in arguments}
        for index in sorted(used[number]):
            shape, dtype = results[index]
            call = Call(operator, given, index, tuple(shape), dtype)
            places[number, index] = apply(c, call)
    number, index = graph["output"]
    return _reaching(c.nodes, places[number, index])


def _used(graph: Graph) -> dict[int, set[int]]:
    """The outputs of nodes that reach the graph's output."""
    number, index = graph["output"]
    used, stack = {number: {index}}, [number]
    while stack:
        for other, index in references(graph["nodes"][stack.pop()][1]):
            if other not in used:
                used[other] = set()
                stack.append(other)
            used[other].add(index)
    return used


def references(value: Any) -> Iterator[tuple[int, int]]:
    """The (node, output) pairs that an argument refers to."""
    if isinstance(value, dict):
        number, index = value["input"]
        yield number, index
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def _size(value: Any) -> int:
    """Number of values in an argument."""
    return max(1, sum(map(_size, value))) if isinstance(value, list) else 1


def _reaching(nodes: list[Node], output: int) -> list[Node]:
    """Remove nodes that rules have replaced."""
    needed, stack = {output}, [output]
    while stack:
        for place in nodes[stack.pop()].inputs:
            if place not in needed:
                needed.add(place)
                stack.append(place)
    order = sorted(needed)
    places = {old: new for new, old in enumerate(order)}
    return [
        Node(n.operator, n.attributes, tuple(places[i] for i in n.inputs), n.shape, n.dtype)
        for n in (nodes[old] for old in order)
    ]


def graph_hash(graph: Graph) -> str:
    """The graph hash, 64 hex digits; equal for networks that compute the same."""
    return _hash(canonical(graph))


def _hash(nodes: list[Node]) -> str:
    users = _users(nodes)
    labels = [_digest(n.operator, n.attributes, n.shape, n.dtype) for n in nodes]
    classes = 0
    for _ in range(_MAX_SWEEPS):
        for place, node in enumerate(nodes):
            labels[place] = _digest(labels[place], *_inputs(node, labels))
        for place in reversed(range(len(nodes))):
            used = sorted((labels[user], position) for user, position in users[place])
            labels[place] = _digest(labels[place], used)
        if len(set(labels)) == classes:
            break
        classes = len(set(labels))
    return hashlib.sha256(b"".join(sorted(labels))).hexdigest()


def _users(nodes: list[Node]) -> list[list[tuple[int, int]]]:
    """The users of each node, as (node, position among its inputs)."""
    users: list[list[tuple[int, int]]] = [[] for _ in nodes]
    for place, node in enumerate(nodes):
        for position, source in enumerate(node.inputs):
            users[source].append((place, 0 if node.operator in UNORDERED else position))
    return users


def _inputs(node: Node, labels: list[bytes]) -> list[bytes]:
    found = [labels[place] for place in node.inputs]
    return sorted(found) if node.operator in UNORDERED else found


def _digest(*parts: Any) -> bytes:
    return hashlib.blake2b(repr(parts).encode("utf-8", "replace"), digest_size=16).digest()


def graph_shingles(graph: Graph) -> NDArray[np.uint64]:
    """Labels of small neighbourhoods, for near matches.

    Every operator gives four labels: kind and attributes; these with its shape; and that with its
    neighbours at distance one and two. Equal labels are counted: the second occurrence of a label
    is another element, so the similarity of two sets is that of the multisets. The graph's hash is
    an element too: only equal networks have equal sets.

    Returns:
        (S,) sorted and unique; the same on every machine.
    """
    nodes = canonical(graph)
    return _shingles(nodes, _hash(nodes))


def _shingles(nodes: list[Node], hash: str) -> NDArray[np.uint64]:
    users = _users(nodes)
    found = [_digest("whole", hash)]
    inner = [place for place, node in enumerate(nodes) if node.operator not in LEAVES]
    found += [_digest("kind", nodes[p].operator, nodes[p].attributes) for p in inner]
    labels = [_digest(n.operator, n.attributes, n.shape, n.dtype) for n in nodes]
    for _ in range(_NEIGHBOURHOOD):
        found += [labels[place] for place in inner]
        labels = [
            _digest(
                labels[place],
                _inputs(node, labels),
                sorted((labels[user], position) for user, position in users[place]),
            )
            for place, node in enumerate(nodes)
        ]
    counted = [_digest(label, k) for label, n in Counter(found).items() for k in range(n)]
    return np.unique(np.frombuffer(b"".join(d[:8] for d in counted), "<u8").astype(np.uint64))


def sketch_graph(graph: Graph) -> GraphSketch:
    """Hash, shingles, structure profile and motifs of a graph, to keep and compare later."""
    nodes = canonical(graph)
    hash = _hash(nodes)
    shingles = _shingles(nodes, hash).astype("<u8").tobytes()
    motifs = tuple(sorted(_motifs(nodes))[:MAX_MOTIFS])
    return GraphSketch(hash, shingles, profile=profile(nodes), motifs=motifs)


def checked_sketch(
    hash: Any, shingles: bytes, profile: Any = None, motifs: Any = None
) -> GraphSketch:
    """A sketch from an untrusted process.

    Raises:
        GraphError: It has not the form of one.
    """
    if not isinstance(hash, str) or not _HASH.fullmatch(hash):
        raise GraphError("not a graph hash")
    if not shingles or len(shingles) % 8 or len(shingles) > 8 * MAX_SHINGLES:
        raise GraphError("not a list of shingles")
    values = np.frombuffer(shingles, "<u8")
    if not (values[1:] > values[:-1]).all():
        raise GraphError("shingles are not sorted and unique")
    return GraphSketch(
        hash, shingles, profile=checked_profile(profile), motifs=_checked_motifs(motifs)
    )


def _checked_motifs(value: Any) -> tuple[str, ...] | None:
    """Motifs from an untrusted process; ``None``: it has not the form of them."""
    if not isinstance(value, list) or len(value) > MAX_MOTIFS:
        return None
    if not all(_is_name(name, MAX_MOTIF) for name in value):
        return None
    return tuple(value) if value == sorted(set(value)) else None


def graph_distance(a: Graph, b: Graph) -> float:
    """1 - Jaccard similarity of the :func:`graph_shingles`: 0.0 for equal networks, at most 1.0."""
    return 1.0 - jaccard(graph_shingles(a), graph_shingles(b))


def operator_motifs(graph: Graph) -> Counter[str]:
    """Counts of chains of three operators, such as ``conv 3x3 > batch_norm > relu``.

    Widths, image sizes, reshapes and types are ignored: a motif describes the design.
    """
    return _motifs(canonical(graph))


def _motifs(nodes: list[Node]) -> Counter[str]:
    names = [_motif_name(node, nodes) for node in nodes]
    sources: list[list[int]] = []
    for node in nodes:
        found: list[int] = []
        for place in node.inputs:
            found += [place] if names[place] else sources[place]
        sources.append(list(dict.fromkeys(found))[:_MAX_RANK])
    motifs: Counter[str] = Counter()
    for place, name in enumerate(names):
        for middle in sources[place] if name else ():
            for first in sources[middle]:
                motifs[f"{names[first]} > {names[middle]} > {name}"] += 1
    return motifs


_SILENT = frozenset({"parameter", "frozen", "constant", "reshape", "permute", "cast", "expand"})
_CALLED = {"convolution": "conv", "native_batch_norm": "batch_norm", "mm": "linear"}
_CALLED |= {"native_layer_norm": "layer_norm", "native_group_norm": "group_norm"}


def _motif_name(node: Node, nodes: list[Node]) -> str:
    """The name of an operator in a motif; empty for those that only move data or hold weights."""
    if node.operator in _SILENT or not node.inputs and node.operator != "input":
        return ""
    attributes = json.loads(node.attributes)
    words = [_CALLED.get(node.operator, node.operator.strip("_*"))]
    if node.operator == "clamp" and attributes == {"min": 0}:
        words = ["relu"]
    elif node.operator == "convolution":
        weight = nodes[node.inputs[1]].shape if len(node.inputs) > 1 else ()
        words += ["x".join(str(n) for n in weight[2:])]
        words += [f"{name} {_one(attributes[name])}" for name in ("stride", "dilation")]
        words = [w for w in words if w not in ("stride 1", "dilation 1")]
        if attributes.get("groups", 1) != 1:
            depthwise = weight[1:2] == (1,)
            words.append("depthwise" if depthwise else f"groups {attributes['groups']}")
    elif sizes := as_ints(attributes.get("kernel")):
        words += ["x".join(map(str, sizes))]
    elif dims := as_ints(attributes.get("dims")):
        words += [str(len(dims))]
    return " ".join(words)


def _one(sizes: list[int]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else "x".join(str(n) for n in sizes)
