"""The Protocol of task sources, and the decoding of one image.

A source says which classes and labels there are before any image is decoded, and then hands out
the images one by one, so that a large task never has to fit into memory twice.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from archloop.errors import UsageError

EncodedImage = bytes | Path | NDArray[np.uint8]
"""A file's content, a file, or pixels of shape (H, W)."""

_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""Exceptions that Pillow raises for damaged files of its various formats."""


class TaskUnavailableError(UsageError):
    """The task's data is neither here nor reachable."""


@dataclass(frozen=True)
class SourceSplit:
    """The labelled images of one split."""

    name: str
    """``train`` or ``test``."""
    labels: Sequence[int]
    images: Callable[[], Iterator[tuple[EncodedImage, str]]]
    """Iterates over the images in the order of the labels; each comes with its name for errors."""


@dataclass(frozen=True)
class OpenedTask:
    """A task ready to be decoded."""

    class_names: tuple[str, ...]
    train: SourceSplit
    test: SourceSplit | None


class TaskSource(Protocol):
    """Where a task's images come from; one file per implementation."""

    @property
    def name(self) -> str:
        """As in the configuration and in records."""
        ...

    @property
    def title(self) -> str:
        """As written in a prompt."""
        ...

    @property
    def default_size(self) -> int | None:
        """Pixels a side where none are configured; ``None``: as the images are."""
        ...

    def key(self) -> str:
        """Identifies the data and changes with it; cheap, as it is computed at every load."""
        ...

    def open(self) -> OpenedTask:
        """Find classes and labels.

        Raises:
            UsageError: The data is wrong; the message says where.
            TaskUnavailableError: The data cannot be had.
        """
        ...


def fingerprint(root: Path, files: Sequence[Path]) -> str:
    """Names, sizes and modification times of files below ``root``, one a line."""
    lines = []
    for file in files:
        stat = file.stat()
        lines.append(f"{file.relative_to(root).as_posix()} {stat.st_size} {stat.st_mtime_ns}")
    return "\n".join(lines)


def decode(image: EncodedImage, where: str, size: int | None) -> NDArray[np.uint8]:
    """The pixels of one image.

    Args:
        image: What to decode.
        where: Its name in an error.
        size: Scale to this many pixels a side, the longer side cropped around the centre; ``None``
            leaves the size alone.

    Returns:
        (1, H, W) for a grayscale image, (3, H, W) for any other (transparency is dropped).

    Raises:
        UsageError: The image is damaged or has an unsupported pixel type.
    """
    try:
        picture = _open(image)
        picture.load()
        picture = ImageOps.exif_transpose(picture)
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{where}: not a readable image ({reason}); replace or remove it"
        ) from None
    picture = _eight_bit(picture, where)
    if size is not None and picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _open(image: EncodedImage) -> Image.Image:
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)


def _eight_bit(picture: Image.Image, where: str) -> Image.Image:
    if picture.mode in ("L", "RGB"):
        return picture
    if picture.mode in ("1", "LA", "La"):
        return picture.convert("L")
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise UsageError(f"{where}: 32-bit pixels; save it with 8 or 16 bits a channel")
    return picture.convert("RGB")
