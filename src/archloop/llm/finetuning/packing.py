"""Batches of pairs: packed into one row without padding, or padded to the longest.

In a packed row, attention stays within each pair (:func:`attend`). If all pairs of a batch start
with the same tokens (the runs of one prompt), this prefix may be computed once and shared: a causal
model gives it the same states in every pair, so the loss is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from archloop.llm.finetuning.dataset import IGNORED, EncodedPair

_PADDING = 0
"""Any token will do: it is on the right, where causal attention does not see it."""
ATTENTION = "archloop_documents"
"""The name of :func:`attend` in transformers' registry of attention functions."""


@dataclass(frozen=True)
class Collator:
    """Turns pairs into what the model's forward pass takes (:mod:`archloop.llm.finetuning.loss`).

    Besides ``input_ids`` and ``position_ids`` (rows, tokens) a batch has ``labels`` (n), the tokens
    that the loss counts, ``sources`` (n), the place in the flattened rows that predicts each of
    them, ``n_tokens``, the length of all pairs together, and in a packed batch ``documents``, the
    lengths of the shared beginning (0 if there is none) and of what follows it in each pair.
    """

    packed: bool
    share_prompt: bool

    def __call__(self, pairs: Sequence[EncodedPair]) -> dict[str, Any]:
        """Collate some pairs."""
        batch = self._packed(pairs) if self.packed else self._padded(pairs)
        # With this name the trainer counts the labels as they are, not shifted by one.
        batch["shift_labels"] = batch["labels"]
        return batch | {"n_tokens": sum(len(p.input_ids) for p in pairs)}

    def _packed(self, pairs: Sequence[EncodedPair]) -> dict[str, Any]:
        shared = shared_prompt(pairs) if self.share_prompt else 0
        ids, positions = pairs[0].input_ids[:shared], list(range(shared))
        lengths, sources, targets = [shared], [], []
        for pair in pairs:
            start = len(ids)
            ids = ids + pair.input_ids[shared:]
            positions += range(shared, len(pair.input_ids))
            lengths.append(len(pair.input_ids) - shared)
            for place, label in _counted(pair):
                before = place - 1
                sources.append(before if before < shared else start + before - shared)
                targets.append(label)
        return _tensors([ids], [positions], sources, targets) | {"documents": tuple(lengths)}

    def _padded(self, pairs: Sequence[EncodedPair]) -> dict[str, Any]:
        longest = max(len(p.input_ids) for p in pairs)
        ids, sources, targets = [], [], []
        for row, pair in enumerate(pairs):
            ids.append(pair.input_ids + [_PADDING] * (longest - len(pair.input_ids)))
            for place, label in _counted(pair):
                sources.append(row * longest + place - 1)
                targets.append(label)
        # No mask is needed: nothing attends to padding.
        return _tensors(ids, [list(range(longest))] * len(ids), sources, targets)


def _counted(pair: EncodedPair) -> list[tuple[int, int]]:
    """(place, label) of every token that the loss counts and that something predicts."""
    return [(i, label) for i, label in enumerate(pair.labels) if label != IGNORED and i > 0]


def _tensors(
    ids: list[list[int]], positions: list[list[int]], sources: list[int], targets: list[int]
) -> dict[str, Any]:
    return {
        "input_ids": torch.tensor(ids),
        "position_ids": torch.tensor(positions),
        "sources": torch.tensor(sources),
        "labels": torch.tensor(targets),
    }


def shared_prompt(pairs: Sequence[EncodedPair]) -> int:
    """The length of the pairs' common prefix, in tokens that the loss does not count."""
    if len(pairs) < 2:
        return 0
    first, longest = pairs[0].input_ids, min(_prompt_length(p) for p in pairs)
    for place in range(longest):
        if any(p.input_ids[place] != first[place] for p in pairs):
            return place
    return longest


def _prompt_length(pair: EncodedPair) -> int:
    counted = [i for i, label in enumerate(pair.labels) if label != IGNORED]
    return counted[0] if counted else len(pair.labels)


def attend(
    _module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document of a row; in a batch without documents, in each row.

    Args:
        _module: The attention layer, unused.
        query: (1, heads, tokens, width).
        key: (1, key heads, tokens, width), and ``value`` alike.
        value: As ``key``.
        attention_mask: Always ``None``: transformers makes none for an attention function that is
            not its own.
        dropout: Of attention weights.
        scaling: Of the scores; ``None``: 1 / sqrt(width).
        documents: See :class:`Collator`; ``None``: whole rows.
        sliding_window: Tokens that each one attends to, itself included; ``None``: all before it.

    Returns:
        (1, tokens, heads, width), and no weights.
    """
    assert attention_mask is None
    grouped = query.shape[1] != key.shape[1]

    def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        band = _band(q, sliding_window)
        mask: dict[str, Any] = {"is_causal": True} if band is None else {"attn_mask": band}
        return scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scaling, enable_gqa=grouped, **mask
        )

    if documents is None:
        return causal(query, key, value).transpose(1, 2), None
    shared = documents[0]
    beginning, *rest = zip(
        *(torch.split(x, list(documents), dim=2) for x in (query, key, value)), strict=True
    )
    answers = []
    for number, document in enumerate(rest):
        whole = [torch.cat(pair, dim=2) for pair in zip(beginning, document, strict=True)]
        # All documents give the shared prefix the same output; that of the first one is kept.
        attended = causal(whole[0], whole[1], whole[2])
        answers.append(attended if number == 0 else attended[:, :, shared:])
    return torch.cat(answers, dim=2).transpose(1, 2), None


def _band(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """The attention mask (tokens, tokens), where a token does not attend to all earlier ones."""
    n = query.shape[2]
    if window is None or n <= window:
        return None
    return torch.ones(n, n, dtype=torch.bool, device=query.device).tril().triu(1 - window)
