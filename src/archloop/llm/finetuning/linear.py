"""LoRA layers with a fused forward and backward pass, for the CPU.

PEFT adds the adapter's product to the base layer's in three passes over the whole output and keeps
intermediate tensors for autograd. Here the addition is part of the matrix multiplication, forward
and backward, which saves memory traffic.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch


class _Product(torch.autograd.Function):
    """x W^T + scaling x A^T B^T for x (tokens, inputs), W frozen; A (r, inputs), B (outputs, r)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        low_a, low_b = a.to(weight.dtype), b.to(weight.dtype)
        inner = x @ low_a.T
        ctx.save_for_backward(x, weight, low_a, low_b, inner)
        ctx.scaling = scaling
        return (x @ weight.T).addmm_(inner, low_b.T, alpha=scaling)

    @staticmethod
    def backward(
        ctx: Any, *upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, None, torch.Tensor, torch.Tensor, None]:
        x, weight, a, b, inner = ctx.saved_tensors
        gradient = upstream[0]
        back = gradient @ b * ctx.scaling
        of_a = (back.T @ x).float()
        of_b = (gradient.T @ inner).float() * ctx.scaling
        of_x = (gradient @ weight).addmm_(back, a) if ctx.needs_input_grad[0] else None
        return of_x, None, of_a, of_b, None


def patch_lora_forward(model: Any) -> int:
    """Patch the forward pass of a PEFT model's plain LoRA layers; returns how many were patched.

    Layers with dropout, biases, LoRA variants or a quantised base keep PEFT's own forward pass.
    """
    from peft.tuners.lora.layer import Linear

    count = 0
    for module in model.modules():
        if type(module) is not Linear or type(module.get_base_layer()) is not torch.nn.Linear:
            continue
        plain = isinstance(module.lora_dropout["default"], torch.nn.Identity)
        if plain and module.get_base_layer().bias is None and not module.lora_variant:
            module.forward = types.MethodType(_forward, module)
            count += 1
    return count


def _forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    weight = module.get_base_layer().weight
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
    apply: Callable[..., torch.Tensor] = _Product.apply
    product = apply(rows, weight, a, b, module.scaling["default"])
    return product.view(*x.shape[:-1], -1)
