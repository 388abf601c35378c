"""Decoded tasks in the cache: each is decoded once and later mapped into memory.

A cached task is a folder ``tasks/NAME-KEY`` with one ``.npy`` file per array and ``meta.json``. It
is written under a lock to a temporary folder and renamed when complete. The key covers the source's
data and the image size; a Hugging Face id is fetched once and kept (delete its folder to fetch it
again).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from archloop.errors import UsageError
from archloop.machine.downloads import cache_dir, lock
from archloop.tasks.source import OpenedTask, SourceSplit, TaskSource, decode

logger = logging.getLogger(__name__)

_FORMAT = 1
"""Increased when decoding or the layout changes, so that older folders are not read."""


@dataclass(frozen=True)
class TaskArrays:
    """All images of a task as the source has them, before training and validation are split."""

    class_names: tuple[str, ...]
    train_images: NDArray[np.uint8]
    """(N, C, H, W)."""
    train_labels: NDArray[np.int64]
    """(N,)."""
    test_images: NDArray[np.uint8] | None
    """(M, C, H, W); ``None`` where the source has no test split."""
    test_labels: NDArray[np.int64] | None
    """(M,)."""
    digest: str
    """SHA-256 over class names and arrays."""


class _ColourFoundError(Exception):
    """A colour image came after grayscale ones: the whole task has three channels."""


def load_arrays(source: TaskSource, image_size: int | None) -> TaskArrays:
    """The decoded task, from the cache if it is there.

    Args:
        source: Where the images come from.
        image_size: Pixels a side; ``None``: the source's default.

    Raises:
        UsageError: Naming the image or class that is wrong, and what would be right.
        TaskUnavailableError: The data cannot be had.
        OSError: They cannot be written, for example because the disk is full.
    """
    folder = decoded_folder(source, image_size)
    if not folder.is_dir():
        with lock(f"task-{folder.name}"):
            if not folder.is_dir():
                _build(source, image_size or source.default_size, folder)
    return _read(folder)


def decoded_folder(source: TaskSource, image_size: int | None) -> Path:
    """The cache folder of the decoded images; it need not exist yet."""
    size = image_size or source.default_size
    identity = json.dumps([_FORMAT, source.name, source.key(), size])
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", source.name).strip("-.") or "task"
    return cache_dir() / "tasks" / f"{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _build(source: TaskSource, size: int | None, folder: Path) -> None:
    task = source.open()
    _check_labels(source.name, task)
    logger.info("decoding %s into the cache, once", source.name)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        try:
            _write(task, size, partial, channels=None)
        except _ColourFoundError:
            _write(task, size, partial, channels=3)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_labels(name: str, task: OpenedTask) -> None:
    classes = len(task.class_names)
    if classes < 2:
        raise UsageError(f"{name}: {classes} class found; a task needs at least two")
    for split in (task.train, task.test):
        for row, label in enumerate(split.labels if split else ()):
            if not 0 <= label < classes:
                raise UsageError(
                    f"{name}: label {label} of {split.name if split else ''} image {row} is "
                    f"outside the {classes} classes 0..{classes - 1}"
                )
    counts = np.bincount(np.asarray(task.train.labels, np.int64), minlength=classes)
    for empty in np.flatnonzero(counts == 0):
        raise UsageError(
            f"{name}: class {task.class_names[empty]!r} has no training image; "
            "add images to it or remove the class"
        )


def _write(task: OpenedTask, size: int | None, folder: Path, channels: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    digest = hashlib.sha256(json.dumps(task.class_names).encode())
    shape: tuple[int, ...] | None = None
    for split in (task.train, task.test):
        if split is None:
            continue
        images = _write_images(split, size, folder / f"{split.name}_images.npy", channels, shape)
        shape, channels = images.shape[1:], images.shape[1]
        labels = np.asarray(split.labels, np.int64)
        np.save(folder / f"{split.name}_labels.npy", labels)
        digest.update(json.dumps([split.name, images.shape]).encode())
        digest.update(images.data)
        digest.update(labels.data)
    meta = {"class_names": task.class_names, "digest": digest.hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta), "utf-8")


def _write_images(
    split: SourceSplit,
    size: int | None,
    path: Path,
    channels: int | None,
    shape: tuple[int, ...] | None,
) -> NDArray[np.uint8]:
    out: NDArray[np.uint8] | None = None
    for row, (image, where) in enumerate(split.images()):
        pixels = decode(image, where, size)
        channels = channels or pixels.shape[0]
        if pixels.shape[0] > channels:
            raise _ColourFoundError
        if shape is None:
            shape = (channels, *pixels.shape[1:])
        if pixels.shape[1:] != shape[1:]:
            raise UsageError(
                f"{where}: {pixels.shape[2]}x{pixels.shape[1]} pixels among images of "
                f"{shape[2]}x{shape[1]}; set task.image_size to bring all to one size"
            )
        if out is None:
            out = np.lib.format.open_memmap(path, "w+", np.uint8, (len(split.labels), *shape))
            _reserve(path)
        out[row] = pixels
    if out is None:
        raise UsageError(f"the {split.name} split has no images")
    return out


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


def _read(folder: Path) -> TaskArrays:
    meta = json.loads((folder / "meta.json").read_text("utf-8"))

    def array(name: str) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = np.load(folder / f"{name}.npy", mmap_mode="r")
        return found

    has_test = (folder / "test_images.npy").is_file()
    return TaskArrays(
        class_names=tuple(meta["class_names"]),
        train_images=array("train_images"),
        train_labels=np.load(folder / "train_labels.npy"),
        test_images=array("test_images") if has_test else None,
        test_labels=np.load(folder / "test_labels.npy") if has_test else None,
        digest=meta["digest"],
    )
