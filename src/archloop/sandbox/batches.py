"""Training batches for one epoch: vectorised, shuffled by seed, given out once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

CROP_PADDING = 4
"""Pixels a side for random crops of 32x32 images (the usual CIFAR recipe); scaled with the size."""


@dataclass(frozen=True)
class BatchRecipe:
    """How images become batches."""

    batch_size: int
    augmentation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Normalise:
    """uint8 images to float32, zero mean and unit variance per channel."""

    def __init__(self, recipe: BatchRecipe) -> None:
        mean, std = torch.tensor(recipe.mean), torch.tensor(recipe.std)
        self._scale = (1.0 / (255.0 * std)).view(1, -1, 1, 1)
        self._shift = (-mean / std).view(1, -1, 1, 1)

    def __call__(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """(B, C, H, W) uint8 -> float32."""
        return torch.from_numpy(images).float().mul_(self._scale).add_(self._shift)


class Epoch:
    """Counts what one epoch gives out; a last batch of a single image is left out (BatchNorm)."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        recipe: BatchRecipe,
        seed: int,
    ) -> None:
        self._images, self._labels, self._recipe, self._seed = images, labels, recipe, seed
        n, size = len(labels), recipe.batch_size
        self.total = n // size + (n % size > 1)
        self.given = 0

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """A one-shot iterator of (inputs, labels); it offers no way back to the data."""
        rng = np.random.default_rng(self._seed)
        order = rng.permutation(len(self._labels))
        normalise, size = Normalise(self._recipe), self._recipe.batch_size

        def batch(index: int) -> tuple[torch.Tensor, torch.Tensor]:
            chosen = order[index * size : (index + 1) * size]
            images = augment(self._images[chosen], self._recipe.augmentation, rng)
            self.given += 1
            return normalise(images), torch.from_numpy(self._labels[chosen])

        return map(batch, range(self.total))


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
