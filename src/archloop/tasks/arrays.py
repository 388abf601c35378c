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
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from archloop.machine.downloads import cache_dir, lock
from archloop.tasks.census import Census
from archloop.tasks.decoding import write_decoded
from archloop.tasks.source import TaskSource

logger = logging.getLogger(__name__)

_FORMAT = 2
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
    census: Census = Census()
    """What else was found, and what is not used."""


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
    logger.info("decoding %s into the cache, once", source.name)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        meta = write_decoded(source.name, task, size, partial)
        (partial / "meta.json").write_text(json.dumps(meta), "utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
        census=Census.from_json(meta["census"]),
    )
