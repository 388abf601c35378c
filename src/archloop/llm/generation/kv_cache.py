"""A key-value cache for sequences that share a prompt and grow in step, written in place.

transformers' own cache copies everything at each token to append one column; here each layer owns
a buffer of its final size and hands out a view of the part filled so far. Rows of finished
sequences are dropped, so the batch shrinks with the work left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer


class _BufferedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, each (rows, heads, capacity, head dimension)."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, rows: int, capacity: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._buffers = [_spread(states, rows, capacity) for states in (keys, values)]
        self._show(keys.shape[-2])

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append states in place and return views of all states so far."""
        start = self.keys.shape[-2]
        length = start + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:length] = states
        self._show(length)
        return self.keys, self.values

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only the given rows, in their order."""
        length = self.keys.shape[-2]
        for position, buffer in enumerate(self._buffers):
            buffer[: len(rows), :, :length] = buffer[rows, :, :length]
            self._buffers[position] = buffer[: len(rows)]
        self._show(length)


def _spread(states: torch.Tensor, rows: int, capacity: int) -> torch.Tensor:
    """A buffer whose rows all begin with the one row of ``states``."""
    _, heads, length, dim = states.shape
    buffer = states.new_empty(rows, heads, capacity, dim)
    buffer[:, :, :length] = states
    return buffer


class RowCache(Cache):  # type: ignore[misc]
    """The cache of a batch of sequences of equal length that begin with the same prompt."""

    def __init__(self, prompt: DynamicCache, rows: int, capacity: int) -> None:
        """Spread a prompt's one row over ``rows`` rows with room for ``capacity`` tokens."""
        super().__init__(
            layers=[_BufferedLayer(x.keys, x.values, rows, capacity) for x in prompt.layers]
        )

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(rows, device=self.layers[0].keys.device)
        for layer in self.layers:
            layer.keep(index)
