"""The pixels of one image, from whatever a file holds, as eight bits a channel."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from archloop.errors import UsageError
from archloop.tasks.source import EncodedImage

_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""Exceptions that Pillow raises for damaged files of its various formats."""

_FAINT = 16
"""An image that spreads over fewer of the 256 levels on white is composed on black, where that
shows more: white icons on nothing would vanish."""

_MULTI_PICTURE = frozenset({"MPO"})
"""Formats whose further frames are no animation: a phone's photo with its preview."""


class UnreadableError(Exception):
    """The image is damaged: ``truncated`` or ``unreadable``."""


@dataclass(frozen=True)
class Decoded:
    """One image."""

    pixels: NDArray[np.uint8]
    """(1, H, W) for a grayscale image, (3, H, W) for any other."""
    bits: int | None = None
    """Of an image of 16 bits: how many its largest value takes; ``None``: it has 8 bits."""
    high_byte: int | None = None
    """Of a colour image of 16 bits, whose low bytes Pillow drops: the largest high byte."""
    frames: bool = False
    """Whether there are further frames, which are not used."""
    transparent: bool = False
    """Whether it was composed on a background."""


def decode(image: EncodedImage, where: str, size: int | None, bits: int = 16) -> Decoded:
    """Decode one image, the first frame of several, upright (EXIF) and composed where transparent.

    Args:
        image: What to decode.
        where: Its name in an error.
        size: Scale to this many pixels a side, the longer side cropped around the centre; ``None``
            leaves the size alone.
        bits: How many bits the grey values of 16-bit images take; they are brought to eight.

    Raises:
        UnreadableError: The image is damaged.
        UsageError: It has an unsupported pixel type.
    """
    try:
        picture = _open(image)
        frames = picture.format not in _MULTI_PICTURE and getattr(picture, "is_animated", False)
        raw = str(getattr(picture, "tile", ""))
        picture.load()
        picture = ImageOps.exif_transpose(picture)
    except _UNREADABLE as error:
        raise UnreadableError("truncated" if "truncated" in str(error) else "unreadable") from error
    deep = _grey_16_bit(picture, where)
    high_byte = None
    if deep is not None:
        shifted = np.minimum(deep >> max(bits - 8, 0), 255)
        eight = Image.fromarray(shifted.astype(np.uint8))
    else:
        eight = _eight_bit(picture, where)
        if ";16" in raw:
            high_byte = int(np.asarray(picture.convert("RGB")).max())
    if size is not None and eight.size != (size, size):
        eight = ImageOps.fit(eight, (size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(eight, np.uint8)
    return Decoded(
        pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1),
        None if deep is None else int(deep.max()).bit_length(),
        high_byte,
        bool(frames),
        deep is None and _is_transparent(picture),
    )


def _open(image: EncodedImage) -> Image.Image:
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)


def _grey_16_bit(picture: Image.Image, where: str) -> NDArray[np.uint16] | None:
    if picture.mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)
    if picture.mode == "I":  # Pillow's type for some files of 16 bits
        values = np.asarray(picture)
        if values.min() >= 0 and values.max() < 2**16:
            return values.astype(np.uint16)
    if picture.mode in ("I", "F"):
        raise UsageError(f"{where}: 32-bit pixels; save it with 8 or 16 bits a channel")
    return None


def _eight_bit(picture: Image.Image, where: str) -> Image.Image:
    if picture.has_transparency_data:
        return _composed(picture)
    if picture.mode in ("L", "RGB"):
        return picture
    if picture.mode == "1":
        return picture.convert("L")
    try:
        return picture.convert("RGB")
    except ValueError:
        raise UsageError(
            f"{where}: pixels of type {picture.mode}; save it as grey, RGB or CMYK"
        ) from None


def _is_transparent(picture: Image.Image) -> bool:
    """Whether any pixel lets a background through."""
    if not picture.has_transparency_data:
        return False
    least, _ = _layers(picture).getchannel("A").getextrema()
    return int(least) < 255  # type: ignore[arg-type]


def _layers(picture: Image.Image) -> Image.Image:
    return (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")


def _composed(picture: Image.Image) -> Image.Image:
    """On white; on black where white would hide what is drawn."""
    mode = "L" if picture.mode in ("L", "LA", "La", "1") else "RGB"
    layers = _layers(picture)
    white = _on(layers, 255).convert(mode)
    if _spread(white) >= _FAINT:
        return white
    black = _on(layers, 0).convert(mode)
    return black if _spread(black) > _spread(white) else white


def _on(layers: Image.Image, level: int) -> Image.Image:
    ground = Image.new("RGBA", layers.size, (level, level, level, 255))
    return Image.alpha_composite(ground, layers).convert("RGB")


def _spread(picture: Image.Image) -> int:
    values = np.asarray(picture)
    return int(np.ptp(values, axis=(0, 1)).max())
