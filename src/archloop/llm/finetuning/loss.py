"""The loss of the answer tokens only, without storing the logits.

The output layer is the widest of an LLM, and prompt tokens do not need it. The logits of the
counted tokens are computed in chunks, together with their gradient (the output layer is frozen), so
that the logits of all tokens are never in memory at the same time.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch

from archloop.errors import UsageError

_CPU_CHUNK = 128
"""Tokens whose logits are computed together: on a CPU their 32-bit copy (25 MB for 49,152 words)
then stays near the cache; 64 and 256 were slower per token (two cores of an AMD EPYC)."""
_CUDA_CHUNK = 1024


class _Loss(torch.autograd.Function):
    """Summed cross-entropy of ``states @ weight.T``, in nats."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        total = states.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(states)
        size = _CPU_CHUNK if states.device.type == "cpu" else _CUDA_CHUNK
        tiny = torch.finfo(torch.float32).tiny
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            wanted = labels[part, None]
            chances = torch.softmax(states[part] @ weight.T, dim=-1, dtype=torch.float32)
            likely = chances.gather(1, wanted)
            total += -likely.clamp_min(tiny).log().sum()
            chances.scatter_(1, wanted, likely - 1)
            gradient[part] = chances.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None, None


def give_loss(base: Any) -> None:
    """Make a causal LLM's forward pass return the loss of a collated batch, and nothing else."""
    base.forward = types.MethodType(_forward, base)


def _forward(
    base: Any,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    sources: torch.Tensor,
    labels: torch.Tensor,
    documents: tuple[int, ...] | None = None,
    num_items_in_batch: torch.Tensor | None = None,
    **_: Any,
) -> dict[str, torch.Tensor]:
    states = base.get_decoder()(
        input_ids=input_ids, position_ids=position_ids, documents=documents, use_cache=False
    ).last_hidden_state
    weight = base.get_output_embeddings().weight
    counted = states.flatten(0, 1).index_select(0, sources).to(weight.dtype)
    count = labels.numel() if num_items_in_batch is None else num_items_in_batch
    apply: Callable[..., torch.Tensor] = _Loss.apply
    return {"loss": apply(counted, weight, labels) / count}


@torch.no_grad()
def check_head(base: Any) -> None:
    """Check that this computation of the loss is right for an LLM.

    Raises:
        UsageError: Its logits are not the product of its last hidden states and its output weights.
    """
    head = base.get_output_embeddings()
    ids = torch.arange(8, device=head.weight.device)[None]
    wanted = base(input_ids=ids).logits.float()
    found = (base.get_decoder()(input_ids=ids).last_hidden_state @ head.weight.T).float()
    if not torch.allclose(wanted, found, rtol=0.05, atol=0.05 * float(wanted.std())):
        raise UsageError(
            f"{type(base).__name__}: cannot be fine-tuned here: its logits are not its last states "
            "times its output weights (the output layer has a bias, a scale or a cap)"
        )
