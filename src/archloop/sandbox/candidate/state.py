"""The weights of a network as plain bytes: names, types and shapes beside raw memory, no pickle.

They are found in the module tree itself, without the network's methods, which may be overridden.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

_TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.complex64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}

Spec = list[list[Any]]
"""[name, type, shape, whether it is a parameter] of every tensor, in the order of the bytes."""


class StateError(ValueError):
    """A weight has no plain form."""


def tensors(net: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under its dotted name, the first of several.

    Uninitialised parameters of lazy layers are left out.
    """
    found, seen = {}, set()
    for prefix, module in _modules(net):
        for kind in ("_parameters", "_buffers"):
            for name, value in module.__dict__[kind].items():
                if _is_made(value) and id(value) not in seen:
                    seen.add(id(value))
                    found[prefix + name] = value
    return found


def _is_made(value: Any) -> bool:
    lazy = UninitializedParameter | UninitializedBuffer
    return isinstance(value, torch.Tensor) and not isinstance(value, lazy)


def _modules(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    todo, seen = [("", net)], {id(net)}
    while todo:
        prefix, module = todo.pop()
        yield prefix, module
        for name, child in module.__dict__["_modules"].items():
            if isinstance(child, nn.Module) and id(child) not in seen:
                seen.add(id(child))
                todo.append((f"{prefix}{name}.", child))


def set_eval(net: nn.Module) -> None:
    """Set every module to evaluation mode, whatever its own ``eval()`` does."""
    net.eval()
    for _, module in _modules(net):
        module.__dict__["training"] = False


def describe(net: nn.Module) -> Spec:
    """What :func:`pack` would say about a network's tensors.

    Raises:
        StateError: A tensor's type has no plain form.
    """
    spec: Spec = []
    for name, tensor in tensors(net).items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind not in _TYPES or tensor.layout is not torch.strided:
            raise StateError(f"{name} is a {tensor.layout} tensor of {tensor.dtype}")
        spec.append([name, kind, list(tensor.shape), isinstance(tensor, nn.Parameter)])
    return spec


def pack(net: nn.Module) -> tuple[Spec, bytes]:
    """A network's tensors as (spec, bytes).

    Raises:
        StateError: A tensor's type has no plain form.
    """
    spec = describe(net)
    plain = (t.detach().as_subclass(torch.Tensor).cpu().contiguous() for t in tensors(net).values())
    parts = [t.view(-1).view(torch.uint8).numpy().tobytes() for t in plain if t.numel()]
    return spec, b"".join(parts)


def load(net: nn.Module, data: bytearray) -> None:
    """Copy the bytes of a network's tensors into it, in the order of :func:`describe`."""
    start = 0
    with torch.no_grad():
        for tensor in tensors(net).values():
            target = tensor.detach().as_subclass(torch.Tensor)
            count = target.numel()
            if count:
                source = torch.frombuffer(data, dtype=target.dtype, count=count, offset=start)
                target.copy_(source.view(target.shape))
            start += count * target.element_size()
