"""The operators that networks use most, on the meta device in a few lines each.

On that device torch 2.13 implements them in Python, decomposed into up to two dozen operations of
0.1 ms each, which is half the time of a network's forward pass. The meta device needs only shapes
and types. These kernels handle the common case (contiguous floats of one type and shape) and call
torch's own kernel in every other case. Arguments of batch normalisation are checked by torch before
the kernel is called.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import global_decomposition_table

Kernel = Callable[..., Any]

_UNARY = ("relu", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "tanh", "hardtanh", "hardswish")
_BINARY = ("add", "sub", "mul", "div")

_library: list[torch.library.Library] = []
"""The registrations last as long as the library object."""


def install() -> None:
    """Register the kernels, for the calling process and its forked children."""
    library = torch.library.Library("aten", "IMPL", "Meta")  # type: ignore[no-untyped-call]
    kernels: dict[str, Kernel] = {"native_batch_norm": _batch_norm}
    for name in _UNARY:
        kernels |= _beside(name, "default", _unary)
        kernels |= _beside(f"{name}_", "default", _in_place)
    for name in _BINARY:
        kernels |= _beside(name, "Tensor", _binary)
    kernels |= _beside("addmm", "default", _addmm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overriding torch's kernels is intended
        for name, kernel in kernels.items():
            library.impl(name, kernel, allow_override=True)  # type: ignore[no-untyped-call]
    _library.append(library)


def _beside(name: str, overload: str, make: Callable[[Kernel], Kernel]) -> dict[str, Kernel]:
    """Register a kernel that falls back on torch's own; skipped if torch has none in Python."""
    packet = getattr(torch.ops.aten, name, None)
    operator = getattr(packet, overload, None)
    tables = (global_decomposition_table[k] for k in ("meta", "post_autograd", "pre_autograd"))
    own = next((table[operator] for table in tables if operator in table), None)
    return {} if own is None else {f"{name}.{overload}".removesuffix(".default"): make(own)}


def _is_plain(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point() and x.is_contiguous()


def _is_number(y: Any) -> bool:
    return isinstance(y, int | float)


def _alike(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.dtype == y.dtype and (x.shape == y.shape or not y.ndim)


def _like(x: torch.Tensor) -> torch.Tensor:
    """``torch.empty_like`` of a contiguous tensor, which torch implements in Python too."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _unary(own: Kernel) -> Kernel:
    def kernel(x: Any, *arguments: Any, **options: Any) -> Any:
        return _like(x) if _is_plain(x) else own(x, *arguments, **options)

    return kernel


def _in_place(own: Kernel) -> Kernel:
    def kernel(x: Any, *arguments: Any, **options: Any) -> Any:
        return x if _is_plain(x) else own(x, *arguments, **options)

    return kernel


def _binary(own: Kernel) -> Kernel:
    """Element-wise, for two tensors of the same type and shape, or a tensor and a number."""

    def kernel(x: Any, y: Any, **options: Any) -> Any:
        if _is_plain(x) and x.ndim and (_is_number(y) or (_is_plain(y) and _alike(x, y))):
            return _like(x)
        return own(x, y, **options)

    return kernel


def _addmm(own: Kernel) -> Kernel:
    """``x @ y + bias``, as a linear layer computes it."""

    def kernel(bias: Any, x: Any, y: Any, **options: Any) -> Any:
        plain = _is_plain(bias) and _is_plain(x) and bias.dtype == x.dtype == y.dtype
        fits = plain and x.ndim == y.ndim == 2 and x.shape[1] == y.shape[0]
        if fits and tuple(bias.shape) == (y.shape[1],):
            return torch.empty((x.shape[0], y.shape[1]), dtype=x.dtype, device=x.device)
        return own(bias, x, y, **options)

    return kernel


def _batch_norm(x: torch.Tensor, *arguments: object) -> tuple[torch.Tensor, ...]:
    """``native_batch_norm(x, weight, bias, mean, variance, training, momentum, eps)``."""
    statistics = x.new_empty(x.shape[1] if arguments[4] else 0)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)
