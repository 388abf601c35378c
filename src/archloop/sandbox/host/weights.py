"""Weights as the main process sees them: what a process says about them, and bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

from archloop.sandbox import wire
from archloop.text import one_line

PARAMETER_BYTES = 4
"""Bytes that count as one parameter, as of float32."""
_SPARE, _LEAST_SPARE = 0.25, 10_000
"""Room for buffers (running statistics, masks), as a share of the parameter budget, and at least so
much. Trained buffers do not count as parameters, so this limit keeps them from bypassing the
budget."""
_MOST_DIMENSIONS = 64
"""Of a tensor, in torch."""
_TYPE_BYTES = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "bfloat16": 2,
    "complex64": 8,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


class _Tensor(NamedTuple):
    """What a process says about one of its tensors."""

    type: str
    shape: tuple[int, ...]
    is_parameter: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return _TYPE_BYTES[self.type] * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.type} of {self.shape}"


class Spec(dict[str, _Tensor]):
    """The tensors of a network by name, in the order of their bytes, as its process states them."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """From a message of a candidate.

        Raises:
            wire.WireError: The value has another form.
        """
        if not isinstance(value, list) or not all(_is_row(row) for row in value):
            raise wire.WireError("no description of weights")
        found = cls({row[0]: _Tensor(row[1], tuple(row[2]), row[3]) for row in value})
        if len(found) != len(value):
            raise wire.WireError("two weights have the same name")
        return found

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.values())

    @property
    def n_parameters(self) -> int:
        """Parameters, one for every four bytes."""
        return _count(tensor.size for tensor in self.values() if tensor.is_parameter)

    def over_budget(self, budget: int | None) -> str | None:
        """Why these are too many for a parameter budget."""
        if budget is None:
            return None
        spare = max(int(_SPARE * budget), _LEAST_SPARE)
        buffers = _count(t.size for t in self.values() if not t.is_parameter)
        if self.n_parameters > budget:
            return f"{self.n_parameters:,} parameters; at most {budget:,} are allowed"
        if buffers > spare:
            return f"buffers as large as {buffers:,} parameters; at most {spare:,} are allowed"
        return None

    def differs(self, built: Spec) -> str | None:
        """How the network differs when it is built anew; ``None``: it has the same tensors."""
        gone, more = self.keys() - built.keys(), built.keys() - self.keys()
        for which, names in (("lacks", gone), ("has besides", more)):
            if names:
                return _line(f"built anew it {which} {', '.join(sorted(names)[:3])}")
        for name, tensor in self.items():
            if built[name][:2] != tensor[:2]:
                return _line(f"built anew its {name} is {built[name]}, trained it is {tensor}")
        return None

    def arranged(self, data: bytes, built: Spec) -> bytes:
        """The bytes in the order of a network that has the same tensors."""
        if list(self) == list(built):
            return data
        starts, start = {}, 0
        for name, tensor in self.items():
            starts[name] = start
            start += tensor.size
        return b"".join(data[starts[n] : starts[n] + tensor.size] for n, tensor in built.items())


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, list)
        and len(row) == 4
        and isinstance(row[0], str)
        and isinstance(row[1], str)
        and row[1] in _TYPE_BYTES
        and isinstance(row[2], list)
        and len(row[2]) <= _MOST_DIMENSIONS
        and all(type(n) is int and 0 <= n < 2**40 for n in row[2])
        and isinstance(row[3], bool)
    )


def _count(sizes: Iterable[int]) -> int:
    return -(-sum(sizes) // PARAMETER_BYTES)


def _line(text: str) -> str:
    """Names are the candidate's."""
    return one_line(text)[:300]
