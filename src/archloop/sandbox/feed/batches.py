"""Training batches for one epoch: vectorised, shuffled by seed, each image once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from archloop.sandbox.feed.augmentation import augment


@dataclass(frozen=True)
class BatchRecipe:
    """How batches are made from images."""

    batch_size: int
    augmentation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None


class Normalise:
    """uint8 images to float32, zero mean and unit variance per channel, resized if asked for."""

    def __init__(self, recipe: BatchRecipe) -> None:
        mean, std = torch.tensor(recipe.mean), torch.tensor(recipe.std)
        self._scale = (1.0 / (255.0 * std)).view(1, -1, 1, 1)
        self._shift = (-mean / std).view(1, -1, 1, 1)
        self._resize = recipe.resize

    def __call__(self, images: NDArray[np.uint8], out: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C, H, W) uint8 -> float32, written into ``out`` if it is given."""
        source = torch.from_numpy(images)
        if self._resize is not None:
            # On bytes, so that values are rounded as in PIL.
            source = resize(source, self._resize)
        if out is None:
            out = torch.empty(source.shape)
        return out.copy_(source).mul_(self._scale).add_(self._shift)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """(B, C, H, W) uint8 -> (B, C, size, size) uint8, bilinear as PIL does it."""
    return torch.nn.functional.interpolate(
        images, (size, size), mode="bilinear", align_corners=False, antialias=True
    )


class Epoch:
    """One pass over the images; a last batch of a single image is left out (BatchNorm)."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        recipe: BatchRecipe,
        seed: int,
    ) -> None:
        self._images, self._labels, self._recipe = images, labels, recipe
        n, size = len(labels), recipe.batch_size
        self.total = n // size + (n % size > 1)
        """Batches of the epoch."""
        self._rng = np.random.default_rng(seed)
        self._order = self._rng.permutation(n)
        self._normalise = Normalise(recipe)

    def write(self, index: int, inputs: torch.Tensor, labels: torch.Tensor) -> int:
        """Write batch ``index`` into (B, C, H, W) float32 and (B,) int64 tensors.

        Batches are written in order, each once, as augmentation draws from one random stream.

        Returns:
            Its images, at most B.
        """
        size = self._recipe.batch_size
        chosen = self._order[index * size : (index + 1) * size]
        images = augment(self._images[chosen], self._recipe.augmentation, self._rng)
        self._normalise(images, inputs[: len(chosen)])
        labels[: len(chosen)] = torch.from_numpy(self._labels[chosen])
        return len(chosen)
