"""Choose next tokens: temperature, then top-k, then top-p, then one uniform draw per sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def uniform_draws(seed: int, n: int) -> torch.Tensor:
    """The ``n`` draws of one sequence: float64 in [0, 1), shape (n,), decided by its seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=generator, dtype=torch.float64)


def choose_tokens(
    logits: torch.Tensor,
    draws: torch.Tensor,
    *,
    temperature: float | Sequence[float],
    top_k: int,
    top_p: float,
) -> torch.Tensor:
    """Sample one token per row by inverting its cumulative distribution at its draw.

    The filters apply in the order of transformers' ``generate``.

    Args:
        logits: (rows, vocabulary), any float type.
        draws: (rows,) uniform in [0, 1); unused when greedy.
        temperature: Divides the logits; 0 is greedy. One for all rows, or one for each.
        top_k: Keep this many of the likeliest tokens; 0 keeps all.
        top_p: Of those keep the fewest whose renormalised probability reaches this.

    Returns:
        (rows,) token ids.
    """
    if not isinstance(temperature, float):
        return _choose_each(logits, draws, temperature, top_k, top_p)
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


def _choose_each(
    logits: torch.Tensor,
    draws: torch.Tensor,
    temperatures: Sequence[float],
    top_k: int,
    top_p: float,
) -> torch.Tensor:
    """Rows of one temperature together, so that each is computed as in a batch of its own kind."""
    different = set(temperatures)
    if len(different) == 1:
        return choose_tokens(logits, draws, temperature=different.pop(), top_k=top_k, top_p=top_p)
    chosen = torch.empty(len(temperatures), dtype=torch.long, device=logits.device)
    for temperature in different:
        rows = [i for i, own in enumerate(temperatures) if own == temperature]
        chosen[rows] = choose_tokens(
            logits[rows], draws[rows], temperature=temperature, top_k=top_k, top_p=top_p
        )
    return chosen
