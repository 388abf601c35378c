"""Batch normalisation on the meta device in a few lines.

torch 2.13 has it in Python there, decomposed into two dozen operations of 0.1 ms each: half the
time of a network's probe. On the meta device only shapes and types are asked for, and these are
known; what batch normalisation checks of its arguments is checked before this is called.
"""

from __future__ import annotations

import warnings

import torch

_library: list[torch.library.Library] = []
"""Registrations end with the library object."""


def install() -> None:
    """For the calling process and what it forks."""
    library = torch.library.Library("aten", "IMPL", "Meta")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it overrides what torch has is the purpose
        library.impl("native_batch_norm", _batch_norm, allow_override=True)  # type: ignore[no-untyped-call]
    _library.append(library)


def _batch_norm(x: torch.Tensor, *arguments: object) -> tuple[torch.Tensor, ...]:
    """``native_batch_norm(x, weight, bias, mean, variance, training, momentum, eps)``."""
    statistics = x.new_empty(x.shape[1] if arguments[4] else 0)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)
