"""Size of the shared memory for training batches."""

from __future__ import annotations

import math

SLOTS = 2
"""One is read while the other is written."""


def slot_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of one batch of ``shape`` (B, C, H, W): float32 images, then int64 labels."""
    return math.prod(shape) * 4 + shape[0] * 8


def ring_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of all slots."""
    return SLOTS * slot_bytes(shape)
