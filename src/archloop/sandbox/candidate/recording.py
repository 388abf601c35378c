"""Records the operators of a network as nodes; runs in the candidate's own process.

The operators that made a tensor in ``__init__`` are recorded too, so that constant tensors (a
positional encoding) differ if their formula does; parameters are leaves. In-place operators and
views are made functional while recording: a view remembers how it was made and is made again from
its base once that has been written to; writing to a view writes to its base.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from archloop.novelty.graph import MAX_NODES
from archloop.sandbox.candidate import state
from archloop.sandbox.candidate.network import Builder, check_logits
from archloop.sandbox.job import CandidateJob

MAX_RECORDED = 2 * MAX_NODES
"""Limit of recorded operators, before unused ones are dropped; includes construction."""

_LARGEST_VALUE = 1 << 20
"""Constant tensors with at most this many elements are compared by value."""

_NOT_ARCHITECTURE = frozenset(
    {"device", "layout", "pin_memory", "memory_format", "non_blocking", "generator"}
)
"""Arguments that say where and how something is computed, not what."""

_RESHAPING_IN_PLACE = frozenset(
    {"transpose_", "t_", "squeeze_", "unsqueeze_", "swapaxes_", "swapdims_", "detach_"}
)
"""Operators that change a tensor's view of its memory, but not the memory."""

Ref = list[int]
Node = list[Any]


class UntraceableError(Exception):
    """The forward pass works, but it has no graph."""


class _Value:
    """The recorded state of a tensor: the node of its value, and the base of a view."""

    def __init__(
        self,
        ref: Ref,
        base: _Value | None = None,
        again: Callable[[Ref], Ref] | None = None,
        back: Callable[[Ref, Ref], Ref] | None = None,
    ) -> None:
        self.ref = ref
        self.base = base
        self.again = again
        """Makes the view from a new value of its base."""
        self.back = back
        """Makes a new value of the base from its old one and one of the view."""
        self.root: _Value = self if base is None else base.root
        self.writes: int = 0 if base is None else self.root.writes
        """Number of writes to the root that this value includes; for a root, their total number."""

    def read(self) -> Ref:
        """The current value; a stale view is made again from its base."""
        stale, value = [], self
        while value.base is not None and value.writes != self.root.writes:
            stale.append(value)
            value = value.base
        for view in reversed(stale):
            assert view.base is not None
            assert view.again is not None
            view.ref, view.writes = view.again(view.base.ref), self.root.writes
        return self.ref

    def write(self, ref: Ref) -> None:
        """Write a new value to this tensor and to the tensor that it is a view of."""
        self.read()
        value: _Value | None = self
        writes = self.root.writes + 1
        while value is not None:
            value.ref, value.writes = ref, writes
            if value.base is not None:
                assert value.back is not None
                ref = value.back(value.base.ref, ref)
            value = value.base


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operators as nodes ``[operator, [[name, argument], ...], [[shape, type], ...]]``."""

    def __init__(self, batch: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = []
        self._batch = batch
        self._values: dict[int, _Value] = {}
        self._alive: list[torch.Tensor] = []
        """Tensors are identified by their address, so none may be freed."""
        self._places: dict[int, int] = {}
        """Numbers of the nodes that reached the output, in the graph."""

    def build(self, builder: Builder, built_on: torch.device, run_on: torch.device) -> nn.Module:
        """A network after a first pass in training mode, which initialises lazy layers."""
        with _Literals(self), self:
            net = builder.instantiate(built_on)
            if built_on != run_on:
                net = net.to(run_on)
            if lazy := _is_lazy(net):
                builder.dummy_forward(net, device=run_on)
        if not lazy:
            builder.dummy_forward(net, device=run_on)
        for parameter in net.parameters():
            # A parameter is a leaf, however it was initialised.
            self._values.pop(id(parameter), None)
        return net.eval()

    def forward(self, net: nn.Module, job: CandidateJob, device: torch.device) -> dict[str, Any]:
        """The graph of a pass in evaluation mode.

        Raises:
            UntraceableError: Too many operators, or one that cannot be made functional.
        """
        where: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if device.type == "meta":
            where = device
        with where:
            inputs = torch.zeros((self._batch, *job.shape), device=device)
        self._know(inputs, _Value(self._emit("input", [], [inputs])))
        with where, _Literals(self), self:
            logits = net(inputs)
        check_logits(logits, self._batch, job.classes)
        return self._live(self._read(logits))

    def weights(self, net: nn.Module) -> dict[int, str]:
        """Names of the parameters and buffers that are nodes of the graph, by their number there.

        After :meth:`forward`.
        """
        values = ((name, self._values.get(id(t))) for name, t in state.tensors(net).items())
        nodes = {value.ref[0]: name for name, value in values if value is not None}
        return {self._places[old]: name for old, name in nodes.items() if old in self._places}

    def _live(self, output: Ref) -> dict[str, Any]:
        """Keep only nodes that reach the output, renumbered."""
        needed, stack = set(), [output[0]]
        while stack:
            number = stack.pop()
            if number not in needed:
                needed.add(number)
                stack.extend(ref[0] for ref in _refs(self.nodes[number][1]))
        if len(needed) > MAX_NODES:
            raise UntraceableError(f"{len(needed):,} operators; at most {MAX_NODES:,} are compared")
        self._places = places = {old: new for new, old in enumerate(sorted(needed))}
        nodes = []
        for old in sorted(needed):
            operator, arguments, outputs = self.nodes[old]
            nodes.append([operator, _renumber(arguments, places), outputs])
        return {"nodes": nodes, "output": [places[output[0]], output[1]]}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
        name = schema.name.rpartition("::")[2]
        if name in _RESHAPING_IN_PLACE:
            old = self._value(args[0])
            arguments = self._arguments(schema, given)
            result = func(*args, **kwargs)
            self._view(name.rstrip("_"), arguments, schema.arguments[0].name, [args[0]], old)
            return result
        arguments = self._arguments(schema, given)
        result = func(*args, **kwargs)
        self._record(schema, name, arguments, given, result)
        return result

    def _record(
        self, schema: Any, name: str, arguments: list[Any], given: dict[str, Any], result: Any
    ) -> None:
        results = list(result) if isinstance(result, tuple | list) else [result]
        viewed = _viewed_argument(schema)
        if viewed is not None:
            tensors = [t for t in results if isinstance(t, torch.Tensor)]
            self._view(name, arguments, viewed, tensors, self._value(given[viewed]))
            return
        written = [
            given[a.name]
            for a in schema.arguments
            if a.alias_info is not None and a.alias_info.is_write and a.name in given
        ]
        written = [t for t in written if isinstance(t, torch.Tensor)]
        fresh = [
            t
            for t in results
            if isinstance(t, torch.Tensor) and not any(t is other for other in written)
        ]
        if not fresh and not written:
            return
        values = {id(t): self._value(t) for t in written}
        number = self._emit(name.rstrip("_") if written else name, arguments, [*fresh, *written])[0]
        for index, tensor in enumerate(fresh):
            self._know(tensor, _Value([number, index]))
        for index, tensor in enumerate(written, len(fresh)):
            values[id(tensor)].write([number, index])

    def _view(
        self,
        name: str,
        arguments: list[Any],
        viewed: str,
        results: list[torch.Tensor],
        base: _Value,
    ) -> None:
        others = [[key, value] for key, value in arguments if key != viewed]
        outputs = [_meta(t, self._number) for t in results]
        of_base = self.nodes[base.ref[0]][2][base.ref[1]]

        def make(ref: Ref) -> Ref:
            return self._append([name, [[viewed, {"input": ref}], *others], outputs])

        number = make(base.read())[0]
        for index, tensor in enumerate(results):

            def again(ref: Ref, index: int = index) -> Ref:
                return [make(ref)[0], index]

            def back(ref: Ref, view: Ref, index: int = index) -> Ref:
                inputs = [["base", {"input": ref}], ["view", {"input": view}]]
                node = [f"{name}_scatter", [*inputs, ["output", index], *others], [of_base]]
                return self._append(node)

            self._know(tensor, _Value([number, index], base, again, back))

    def literal(self, tensor: torch.Tensor, data: torch.Tensor) -> None:
        """Record that a tensor holds values written in the source."""
        self._know(tensor, _Value(self._constant(tensor, data)))

    def _value(self, tensor: torch.Tensor) -> _Value:
        value = self._values.get(id(tensor))
        if value is None:
            value = self._know(tensor, _Value(self._constant(tensor, tensor)))
        return value

    def _constant(self, tensor: torch.Tensor, data: torch.Tensor) -> Ref:
        if tensor.requires_grad or isinstance(tensor, nn.Parameter):
            kind = "parameter" if tensor.requires_grad else "frozen"
            return self._emit(kind, [], [tensor])
        if is_lazy(data) or data.device.type == "meta" or data.numel() > _LARGEST_VALUE:
            return self._emit("constant", [], [tensor])
        with _disable_current_modes():
            text = repr(data.detach().cpu().tolist())
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self._emit("constant", [["value", digest]], [tensor])

    def _know(self, tensor: torch.Tensor, value: _Value) -> _Value:
        if id(tensor) not in self._values:
            self._alive.append(tensor)
        self._values[id(tensor)] = value
        return value

    def _read(self, tensor: torch.Tensor) -> Ref:
        return self._value(tensor).read()

    def _emit(self, operator: str, arguments: list[Any], results: list[torch.Tensor]) -> Ref:
        return self._append([operator, arguments, [_meta(t, self._number) for t in results]])

    def _append(self, node: Node) -> Ref:
        if len(self.nodes) >= MAX_RECORDED:
            raise UntraceableError(f"more than {MAX_RECORDED:,} operators")
        self.nodes.append(node)
        return [len(self.nodes) - 1, 0]

    def _arguments(self, schema: Any, given: dict[str, Any]) -> list[Any]:
        found = []
        for argument in schema.arguments:
            name = argument.name
            if name not in given or name in _NOT_ARCHITECTURE:
                continue
            value = given[name]
            if not _has_tensors(value) and value == argument.default_value:
                continue
            found.append([name, self._plain(value)])
        return found

    def _plain(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {"input": self._read(value)}
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int | float):
            return self._number(value)
        if isinstance(value, list | tuple):
            return [self._plain(item) for item in value]
        return str(value).removeprefix("torch.")

    def _number(self, value: float) -> int | float | str:
        if not math.isfinite(value):
            return str(value)
        if value != int(value) or abs(value) >= 2**53:
            return float(value)
        times, rest = divmod(int(value), self._batch)
        return f"{times}N" if times > 0 and not rest else int(value)


class _Literals(TorchFunctionMode):
    """Records tensors made from values in the source, which the meta device does not store."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and not _has_tensors(args):
            data = result
            if result.device.type == "meta":
                with _disable_current_modes():
                    data = func(*args, **{**kwargs, "device": "cpu"})
            self._recorder.literal(result, data)
        return result


def _is_lazy(net: nn.Module) -> bool:
    tensors = [*net.parameters(), *net.buffers()]
    return any(is_lazy(t) for t in tensors)


def _has_tensors(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_tensors(item) for item in value)
    return isinstance(value, torch.Tensor)


def _viewed_argument(schema: Any) -> str | None:
    """The argument that the results of a view operator share memory with."""
    if not any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns):
        return None
    for argument in schema.arguments:
        if argument.alias_info is not None and not argument.alias_info.is_write:
            return str(argument.name)
    return None


def _meta(tensor: torch.Tensor, number: Callable[[float], Any]) -> list[Any]:
    # A lazy layer's tensors have no shape before the first pass.
    shape = [] if is_lazy(tensor) else [number(n) for n in tensor.shape]
    return [shape, str(tensor.dtype).removeprefix("torch.")]


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, dict):
        yield value["input"]
    elif isinstance(value, list):
        for item in value:
            yield from _refs(item)


def _renumber(value: Any, places: dict[int, int]) -> Any:
    if isinstance(value, dict):
        number, index = value["input"]
        return {"input": [places[number], index]}
    if isinstance(value, list):
        return [_renumber(item, places) for item in value]
    return value
