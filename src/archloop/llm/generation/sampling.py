"""Choose next tokens: temperature, then top-k, then top-p, then one uniform draw per sequence."""

from __future__ import annotations

import torch


def uniform_draws(seed: int, n: int) -> torch.Tensor:
    """The ``n`` draws of one sequence: float64 in [0, 1), shape (n,), decided by its seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=generator, dtype=torch.float64)


def choose_tokens(
    logits: torch.Tensor, draws: torch.Tensor, *, temperature: float, top_k: int, top_p: float
) -> torch.Tensor:
    """Sample one token per row by inverting its cumulative distribution at its draw.

    The filters apply in the order of transformers' ``generate``.

    Args:
        logits: (rows, vocabulary), any float type.
        draws: (rows,) uniform in [0, 1); unused when greedy.
        temperature: Divides the logits; 0 is greedy.
        top_k: Keep this many of the likeliest tokens; 0 keeps all.
        top_p: Of those keep the fewest whose renormalised probability reaches this.

    Returns:
        (rows,) token ids.
    """
    if temperature == 0.0:
        return logits.argmax(-1)
    vocabulary = logits.shape[-1]
    scores = logits.float() / temperature
    values, tokens = scores.topk(min(top_k, vocabulary) if top_k else vocabulary)
    probabilities = values.double().softmax(-1)
    reached_before = probabilities.cumsum(-1) - probabilities
    kept = probabilities * (reached_before < top_p)
    cumulative = kept.cumsum(-1)
    targets = draws.to(cumulative)[:, None] * cumulative[:, -1:]
    picks = torch.searchsorted(cumulative, targets, right=True)
    last_kept = (kept > 0).sum(-1, keepdim=True) - 1
    return tokens.gather(-1, picks.minimum(last_kept)).squeeze(-1)
