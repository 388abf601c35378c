"""Decodes a task into a folder: one ``.npy`` file per array, all images in one form."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archloop.errors import UsageError
from archloop.tasks.census import Census, Tally
from archloop.tasks.pixels import Decoded, UnreadableError, decode
from archloop.tasks.source import EncodedImage, OpenedTask, Skipped, SourceSplit
from archloop.tasks.splits import check_labels

_LEAST_HIGH_BYTE = 16
"""Colour of 16 bits that nowhere reaches it has 12 bits or fewer, most of which Pillow drops."""


@dataclass(frozen=True)
class _Form:
    """How images are brought to one form; what needs another shows while they are decoded."""

    size: int | None
    channels: int | None = None
    bits: int = 16
    """Of the grey values of 16-bit images, which often fill only 8, 10 or 12 of them."""


class _OtherFormError(Exception):
    """Images that were decoded already need another form."""

    def __init__(self, form: _Form) -> None:
        self.form = form


def write_decoded(name: str, task: OpenedTask, size: int | None, folder: Path) -> dict[str, Any]:
    """Decode a task into a folder, which is emptied before.

    Args:
        name: The task's, for errors.
        task: What to decode.
        size: Pixels a side; ``None``: as the images are.
        folder: Created if absent.

    Returns:
        Class names, digest (SHA-256 over class names and arrays) and census, as JSON values.

    Raises:
        UsageError: There are fewer than two classes, a class has no image that can be used, all
            images are constant, or one has another size or type than the others.
        OSError: The folder cannot be written.
    """
    _check_classes(name, task)
    form = _Form(size)
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            return _write(name, task, folder, form)
        except _OtherFormError as found:
            form = found.form


def _check_classes(name: str, task: OpenedTask) -> None:
    classes = len(task.class_names)
    if classes < 2:
        listed = f" ({task.class_names[0]!r})" if classes else ""
        raise UsageError(f"{name}: {classes} class found{listed}; a task needs at least two")
    try:
        check_labels(task.train, classes)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    _check_each_class(name, task, task.train.labels, ())


def _check_each_class(
    name: str, task: OpenedTask, labels: Sequence[int], skipped: Sequence[Skipped]
) -> None:
    counts = np.bincount(np.asarray(labels, np.int64), minlength=len(task.class_names))
    for empty in np.flatnonzero(counts == 0):
        class_name = task.class_names[empty]
        lost = [one for one in skipped if one.class_name == class_name]
        if lost:
            raise UsageError(
                f"{name}: class {class_name!r} has no image that can be used: {len(lost)} "
                f"{lost[0].reason} ({lost[0].where}); replace them or remove the class"
            )
        raise UsageError(
            f"{name}: class {class_name!r} has no training image; "
            "add images to it or remove the class"
        )


def _write(name: str, task: OpenedTask, folder: Path, form: _Form) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(task.class_names).encode())
    tally = Tally()
    train = _SplitWriter(task, task.train, folder, form, tally)
    images, labels = train.write()
    _check_each_class(name, task, labels.tolist(), tally.skipped)
    train.check_depth(name)
    if len(tally.constant) == len(labels):
        transparent = " and transparent" if tally.transparent == len(labels) else ""
        raise UsageError(
            f"{name}: all {len(labels)} images are constant{transparent}, one colour from edge to "
            f"edge ({tally.constant[0].where}); check what the files show"
        )
    for part in (json.dumps(["train", images.shape]).encode(), images.data, labels.data):
        digest.update(part)
    problem = "; ".join(task.unused) if task.test is None and task.unused else None
    if task.test is not None:
        # What is wrong with it must not stop anybody who does not measure on it.
        with_test = tally.copy()
        try:
            images, labels = _SplitWriter(task, task.test, folder, train.form, with_test).write()
        except UsageError as error:
            problem = f"{task.test.title or 'test'} is not used ({error})"
            for file in folder.glob("test_*.npy"):
                file.unlink()
        else:
            for part in (json.dumps(["test", images.shape]).encode(), images.data, labels.data):
                digest.update(part)
            tally = with_test
    if form.bits != _Form.bits:
        tally.lines.append(f"16-bit images hold values of {form.bits} bits or fewer, scaled to 8")
    unused = () if task.test is None else task.unused
    census = Census(
        (*task.skipped, *tally.skipped),
        tuple(tally.constant),
        (*task.notes, *tally.notes(), *unused),
        problem,
    )
    return {
        "class_names": task.class_names,
        "digest": digest.hexdigest(),
        "census": census.to_json(),
    }


class _SplitWriter:
    """Decodes the images of one split into its files."""

    def __init__(
        self, task: OpenedTask, split: SourceSplit, folder: Path, form: _Form, tally: Tally
    ) -> None:
        self.form = form
        self._task = task
        self._split = split
        self._folder = folder
        self._tally = tally
        self._bits: list[int] = []
        self._high_bytes: list[int] = []

    def write(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Write what can be decoded, and count the rest.

        Returns:
            Images (N, C, H, W), mapped from their file, and labels (N,).

        Raises:
            _OtherFormError: The images need another form than those decoded already.
            UsageError: An image has another size or type, or none can be used.
        """
        path = self._folder / f"{self._split.name}_images.npy"
        out: NDArray[np.uint8] | None = None
        kept: list[int] = []
        for (image, where), label in zip(self._split.images(), self._split.labels, strict=True):
            found = self._decode(image, where, label)
            if found is None:
                continue
            if out is None:
                shape = (len(self._split.labels), *self._shape(found.pixels))
                out = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
                _reserve(path)
            if found.pixels.shape[1:] != out.shape[2:]:
                raise UsageError(
                    f"{where}: {found.pixels.shape[2]}x{found.pixels.shape[1]} pixels among images "
                    f"of {out.shape[3]}x{out.shape[2]}; set task.image_size to bring all to one "
                    "size"
                )
            row = out[len(kept)]
            row[:] = found.pixels
            kept.append(label)
            self._count(found, row, where, label)
        if out is None:
            raise UsageError(self._none_left())
        if len(kept) < len(self._split.labels):
            out = _cut(path, out, len(kept))
        labels = np.asarray(kept, np.int64)
        np.save(self._folder / f"{self._split.name}_labels.npy", labels)
        return out, labels

    def check_depth(self, name: str) -> None:
        """Check that 16-bit images were brought to eight by the range that they really fill.

        Raises:
            _OtherFormError: They fill a smaller one.
            UsageError: They are in colour and fill a smaller one.
        """
        if self._high_bytes and max(self._high_bytes) < _LEAST_HIGH_BYTE:
            raise UsageError(
                f"{name}: colour images of 16 bits whose values stay below "
                f"{(max(self._high_bytes) + 1) * 256}; save them with 8 bits a channel"
            )
        needed = max([8, *self._bits]) if self._bits else self.form.bits
        if needed < self.form.bits:
            raise _OtherFormError(replace(self.form, bits=needed))

    def _decode(self, image: EncodedImage | None, where: str, label: int) -> Decoded | None:
        if image is None:
            self._tally.skipped.append(self._skipped("missing", where, label))
            return None
        try:
            found = decode(image, where, self.form.size, self.form.bits)
        except UnreadableError as error:
            self._tally.skipped.append(self._skipped(str(error), where, label))
            return None
        if self.form.channels is None:
            self.form = replace(self.form, channels=len(found.pixels))
        if len(found.pixels) > (self.form.channels or 0):
            # A colour image after grayscale ones: the whole task has three channels.
            raise _OtherFormError(replace(self.form, channels=3))
        return found

    def _count(self, found: Decoded, row: NDArray[np.uint8], where: str, label: int) -> None:
        self._tally.frames += found.frames
        self._tally.transparent += found.transparent
        if found.bits is not None:
            self._bits.append(found.bits)
        if found.high_byte is not None:
            self._high_bytes.append(found.high_byte)
        if (row == row[:, :1, :1]).all():
            self._tally.constant.append(self._skipped("constant", where, label))
        else:
            self._tally.compare(hashlib.sha256(row.data).digest(), self._split.name, label)

    def _skipped(self, reason: str, where: str, label: int) -> Skipped:
        return Skipped(reason, where.removeprefix(self._task.root), self._task.class_names[label])

    def _shape(self, pixels: NDArray[np.uint8]) -> tuple[int, ...]:
        """The shape of the task's images: of the training split's, else of the first one."""
        train = self._folder / "train_images.npy"
        if train.is_file():
            whole: tuple[int, ...] = np.load(train, mmap_mode="r").shape
            return whole[1:]
        return (self.form.channels or len(pixels), *pixels.shape[1:])

    def _none_left(self) -> str:
        title = self._split.title or self._split.name
        if not self._split.labels:
            return f"the {title} split has no images"
        last = self._tally.skipped[-1]
        return f"no image of the {title} split can be used ({last.where}: {last.reason})"


def _reserve(path: Path) -> None:
    """Reserve a file's disk space: once it is mapped, a full disk would kill the process.

    Raises:
        OSError: The disk has too little space.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def _cut(path: Path, images: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    """Keep the first ``n`` images of a file."""
    shorter = path.with_suffix(".cut.npy")
    np.save(shorter, images[:n])
    shorter.replace(path)
    kept: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return kept
