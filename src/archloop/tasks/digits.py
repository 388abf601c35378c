"""scikit-learn's bundled digits: 1,797 real 8x8 images, scaled to 32x32; no download.

A copy of the test set of UCI's "Optical Recognition of Handwritten Digits"; it has no split of its
own.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import numpy as np

from archloop.tasks.source import EncodedImage, OpenedTask, SourceSplit


class DigitsSource:
    """The task ``digits``."""

    name = "digits"
    title = "Digits"
    default_size = 32

    def key(self) -> str:
        """The version of scikit-learn, which carries the images."""
        return version("scikit-learn")

    def open(self) -> OpenedTask:
        """All images, as one training split."""
        from sklearn.datasets import load_digits

        data = load_digits()
        # Pixels are counts of 0..16 set bits in a 4x4 block.
        pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)

        def images() -> Iterator[tuple[EncodedImage, str]]:
            for row, image in enumerate(pixels):
                yield image, f"digits image {row}"

        names = tuple(str(name) for name in data.target_names)
        return OpenedTask(names, SourceSplit("train", data.target.tolist(), images), None)
