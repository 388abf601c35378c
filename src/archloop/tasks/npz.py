"""One ``.npz`` file as a task: ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test`` ...

Nothing in the file is executed: arrays of Python objects, which are pickles, are refused.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archloop.errors import UsageError
from archloop.tasks.columns import Classes
from archloop.tasks.source import EncodedImage, OpenedTask, SourceSplit, fingerprint
from archloop.tasks.splits import SYNONYMS, first_usable, split_role

_IMAGES = ("x", "images", "image", "imgs", "img", "data", "pixels", "features", "inputs")
_LABELS = ("y", "labels", "label", "targets", "target", "class")
_CLASS_NAMES = frozenset(
    {"classes", "classnames", "labelnames", "targetnames", "names", "categories"}
)
EXPECTED = "x and y, or x_train, y_train, x_test and y_test (also images and labels)"


@dataclass(frozen=True)
class _Range:
    """Brings values to 0..255."""

    low: float
    scale: float
    note: str | None = None

    def __call__(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        scaled = np.rint((values.astype(np.float64) - self.low) * self.scale)
        return np.clip(scaled, 0, 255).astype(np.uint8)


class NpzSource:
    """The arrays of one file."""

    default_size = None

    def __init__(self, file: Path, name: str, title: str) -> None:
        self._file = file
        self.name = name
        self.title = title
        self._read: dict[str, NDArray[Any]] = {}

    def key(self) -> str:
        """Name, size and time of the file."""
        return fingerprint(self._file.parent, [self._file])

    def open(self) -> OpenedTask:
        """Read the labels, and which array is what.

        Raises:
            UsageError: The file is damaged or its arrays are no images with labels.
        """
        names = self._names()
        splits, names_key, unused = _sorted_out(names)
        whole = {split: pair for split, pair in splits.items() if len(pair) == 2}
        train = next((s for s in ("train", "") if s in whole), None)
        if train is None:
            raise UsageError(
                f"{self._file}: no training images with labels; it holds {', '.join(names[:8])}; "
                f"expected {EXPECTED}"
            )
        tests = [s for s in ("test", "validation") if s in splits]
        unused += [
            key
            for split, pair in splits.items()
            if split != train and split not in tests
            for key in pair.values()
        ]
        values = self._labels(whole[train]["labels"])
        classes = Classes.of(values, self._class_names(names_key, values), str(self._file))
        in_range = self._range(whole[train]["images"])

        def test_split(split: str) -> SourceSplit:
            if split not in whole:
                raise UsageError("it has images or labels alone")
            pair = whole[split]
            own = classes.labels(self._labels(pair["labels"]), pair["labels"])
            return self._split("test", pair["images"], own, in_range)

        test, lines = first_usable(((s, partial(test_split, s)) for s in tests), len(classes.names))
        notes = [in_range.note] if in_range.note else []
        if unused:
            notes.append(f"arrays not used: {', '.join(unused)}")
        labels = classes.labels(values, str(self._file))
        first = self._split("train", whole[train]["images"], labels, in_range)
        return OpenedTask(classes.names, first, test, notes=tuple(notes), unused=tuple(lines))

    def _names(self) -> list[str]:
        with self._opened() as arrays:
            return list(arrays.files)

    def _array(self, key: str) -> NDArray[Any]:
        if key in self._read:
            return self._read[key]
        try:
            with self._opened() as arrays:
                array: NDArray[Any] = arrays[key]
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            if "allow_pickle" in str(error):
                raise UsageError(
                    f"{self._file}: {key} holds Python objects, which are not loaded; save numbers "
                    "or text"
                ) from None
            raise UsageError(f"{self._file}: {key} cannot be read ({error})") from None
        self._read[key] = array
        return array

    def _opened(self) -> Any:
        try:
            arrays = np.load(self._file, allow_pickle=False)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UsageError(f"{self._file}: not a readable .npz file ({error})") from None
        if isinstance(arrays, np.ndarray):
            raise UsageError(f"{self._file}: one array alone; expected {EXPECTED} by np.savez")
        return arrays

    def _labels(self, key: str) -> list[Any]:
        array = self._array(key)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim == 2 and np.isin(array, (0, 1)).all() and (array.sum(axis=1) == 1).all():
            array = array.argmax(axis=1)  # one column a class
        if array.ndim != 1:
            raise UsageError(
                f"{self._file}: {key} has the shape {array.shape}; expected one label an image"
            )
        if array.dtype.kind == "S":
            array = np.char.decode(array, "utf-8", "replace")
        if array.dtype.kind == "f":
            if not (array == np.rint(array)).all():
                raise UsageError(f"{self._file}: {key} are no classes; expected integers or text")
            array = array.astype(np.int64)
        if array.dtype.kind not in "iubU":
            raise UsageError(
                f"{self._file}: {key} are of type {array.dtype}; expected integers or text"
            )
        found: list[Any] = array.tolist()
        return found

    def _class_names(self, key: str | None, labels: list[Any]) -> tuple[str, ...] | None:
        """Names of the classes, where the file has them and labels are their numbers."""
        if key is None or not labels or not isinstance(labels[0], int):
            return None
        names = tuple(str(name) for name in self._array(key).ravel().tolist())
        return names if all(0 <= label < len(names) for label in labels) else None

    def _range(self, key: str) -> _Range:
        """How the values of the training images become eight bits."""
        array = self._array(key)
        kind = array.dtype.kind
        if kind not in "biuf":
            raise UsageError(f"{self._file}: {key} is of type {array.dtype}; expected numbers")
        if array.size == 0:
            raise UsageError(f"{self._file}: {key} is empty")
        if not np.isfinite(array).all():
            raise UsageError(f"{self._file}: {key} holds values that are not finite")
        low, high = float(array.min()), float(array.max())
        if kind == "b":
            return _Range(0.0, 255.0)
        if kind in "iu" and low >= 0:
            bits = max(8, int(high).bit_length())
            note = f"values of {bits} bits are scaled to 8" if bits > 8 else None
            return _Range(0.0, 255.0 / (2**bits - 1), note)
        if low >= 0 and high <= 1:
            return _Range(0.0, 255.0)
        if low >= 0 and 127 < high <= 255:
            return _Range(0.0, 1.0)
        if -1 <= low < 0 < high <= 1:
            return _Range(-1.0, 127.5)
        note = f"values from {low:g} to {high:g} are scaled to 0..255"
        return _Range(low, 255.0 / (high - low) if high > low else 0.0, note)

    def _split(self, split: str, key: str, labels: list[int], in_range: _Range) -> SourceSplit:
        def images() -> Iterator[tuple[EncodedImage, str]]:
            array = self._pictures(key)
            for row, image in enumerate(array):
                yield np.ascontiguousarray(in_range(image)), f"{key} {row}"

        n = len(self._array(key))
        if n != len(labels):
            raise UsageError(f"{self._file}: {key} has {n} images for {len(labels)} labels")
        self._pictures(key)
        return SourceSplit(split, labels, images, key)

    def _pictures(self, key: str) -> NDArray[Any]:
        """(N, H, W) or (N, H, W, C)."""
        array = self._array(key)
        if array.ndim == 2 and isqrt(array.shape[1]) ** 2 == array.shape[1]:
            side = isqrt(array.shape[1])
            array = array.reshape(len(array), side, side)
        if array.ndim == 4 and array.shape[3] not in (1, 3, 4) and array.shape[1] in (1, 3, 4):
            array = array.transpose(0, 2, 3, 1)
        if array.ndim == 4 and array.shape[3] == 1:
            array = array[..., 0]
        if array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (3, 4)):
            return array
        raise UsageError(
            f"{self._file}: {key} has the shape {array.shape}; expected (N, H, W), (N, H, W, C) or "
            "(N, C, H, W) with 1, 3 or 4 channels"
        )


def _sorted_out(
    names: list[str],
) -> tuple[dict[str, dict[str, str]], str | None, list[str]]:
    """Images and labels of each split (``""``: of none), the class names, and the rest."""
    splits: dict[str, dict[str, str]] = {}
    class_names = None
    unused = []
    for name in names:
        plain = "".join(char for char in name.casefold() if char.isalnum())
        if plain in _CLASS_NAMES:
            class_names = name
        elif (meant := _MEANINGS.get(plain)) and meant[1] not in splits.get(meant[0], {}):
            splits.setdefault(meant[0], {})[meant[1]] = name
        else:
            unused.append(name)
    return splits, class_names, unused


def _meanings() -> Mapping[str, tuple[str, str]]:
    """Split and kind of every usual array name, without case and separators."""
    found: dict[str, tuple[str, str]] = {}
    for kind, words in (("images", _IMAGES), ("labels", _LABELS)):
        for word in words:
            found[word] = "", kind
            for synonym in (synonym for synonyms in SYNONYMS.values() for synonym in synonyms):
                for name in (word + synonym, synonym + word):
                    found[name] = split_role(synonym) or "", kind
    return found


_MEANINGS = _meanings()
