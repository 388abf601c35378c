"""Finds the trainable tensors of a network without its methods, which may be overridden."""

from __future__ import annotations

import gc
import types
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

_ATOMS = (str, bytes, int, float, complex, type(None), types.CodeType, types.ModuleType)


def trainable_tensors(net: nn.Module, module: types.ModuleType) -> list[torch.Tensor]:
    """Every parameter, and every other leaf tensor that requires gradients, each once.

    Tensors are searched from the network and from its module's globals: registered parameters,
    plain attributes, containers, closures, optimisers. Parameters that a lazy layer has not made
    yet are left out.

    Args:
        net: An instance of the candidate's ``Net``.
        module: The module that the candidate's source made.
    """
    found: dict[int, torch.Tensor] = {}
    seen: set[int] = set()
    todo: list[Any] = [net, vars(module)]
    while todo:
        value = todo.pop()
        if isinstance(value, _ATOMS) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if _is_weight(value):
                found[id(value)] = value
        elif _is_followed(value, module):
            todo.extend(gc.get_referents(value))
    return list(found.values())


def count(tensors: list[torch.Tensor]) -> int:
    """Parameters in the tensors: one for every four bytes, so a complex one is two."""
    return -(-sum(t.numel() * t.element_size() for t in tensors) // 4)


def _is_weight(tensor: torch.Tensor) -> bool:
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        return False
    return isinstance(tensor, nn.Parameter) or (tensor.requires_grad and tensor.is_leaf)


def _is_followed(value: Any, module: types.ModuleType) -> bool:
    """Other modules are not searched: torch's functions and classes refer to all of torch."""
    if isinstance(value, types.FunctionType):
        return value.__globals__ is vars(module)
    if isinstance(value, type):
        return value.__module__ == module.__name__
    return not isinstance(value, types.BuiltinFunctionType)
