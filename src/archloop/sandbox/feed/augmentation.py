"""Random flips and crops of whole batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CROP_PADDING = 4
"""Padding in pixels for random crops of 32x32 images (the usual CIFAR recipe); scaled with the
size."""


def augment(images: NDArray[np.uint8], kind: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random horizontal flips (``flip``), after random crops of padded images (``crop_flip``)."""
    if kind == "none":
        return images
    if kind == "crop_flip":
        images = _crop(images, rng)
    flipped = rng.random(len(images)) < 0.5
    return np.where(flipped[:, None, None, None], images[..., ::-1], images)


def _crop(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    n, channels, height, width = images.shape
    pad = max(1, round(CROP_PADDING * height / 32))
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows = rng.integers(0, 2 * pad + 1, n)[:, None] + np.arange(height)
    columns = rng.integers(0, 2 * pad + 1, n)[:, None] + np.arange(width)
    picture, channel = np.arange(n)[:, None, None, None], np.arange(channels)[None, :, None, None]
    cropped: NDArray[np.uint8] = padded[
        picture, channel, rows[:, None, :, None], columns[:, None, None, :]
    ]
    return cropped
