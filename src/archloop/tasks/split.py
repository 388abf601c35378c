"""Training and validation images of a task: stratified, and the same in every run.

Which images are held out depends on the labels and on the seed alone: not on the other settings,
the order of a run or the numpy version (the raw PCG64 stream is fixed).
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from archloop.errors import UsageError
from archloop.types import TaskData, TaskInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from archloop.config import ProtocolConfig
    from archloop.tasks.arrays import TaskArrays

SPLIT_SEED = 0
"""The split is part of the protocol, so it has its own random seed, which no run changes."""

_HOLDOUT, _TRAIN_CAP, _VALIDATION_CAP = range(3)
"""Independent random streams, one for each choice."""


def split_task(
    arrays: TaskArrays, protocol: ProtocolConfig, *, name: str, title: str, seed: int
) -> TaskData:
    """Choose the images to train on and the images to measure on.

    Args:
        arrays: The whole task.
        protocol: Its ``validation``, ``train_images`` and ``validation_images`` are used; a cap
            above what there is takes all.
        name: As in the configuration and in errors.
        title: As written in a prompt.
        seed: Seed of the stratified choices.

    Raises:
        UsageError: The protocol asks for a test split or for more images than there are.
    """
    classes = len(arrays.class_names)
    images, labels = arrays.train_images, arrays.train_labels
    train = np.arange(len(labels))
    if protocol.validation == "test":
        if arrays.test_images is None or arrays.test_labels is None:
            problem = arrays.census.test_problem
            raise UsageError(
                f"protocol.validation = 'test': {name} has no test split"
                f"{f' that can be used: {problem}' if problem else ''}; use 'holdout:N'"
            )
        images, labels = arrays.test_images, arrays.test_labels
        validation = np.arange(len(labels))
    else:
        validation = stratified(labels, _holdout_size(arrays, protocol, name), seed, _HOLDOUT)
        train = np.setdiff1d(train, validation, assume_unique=True)
    if protocol.train_images is not None and protocol.train_images < classes:
        raise UsageError(
            f"protocol.train_images = {protocol.train_images}: {name} has {classes} classes; "
            "use at least one image a class"
        )
    train = _cap(train, arrays.train_labels, protocol.train_images, seed, _TRAIN_CAP)
    validation = _cap(validation, labels, protocol.validation_images, seed, _VALIDATION_CAP)
    train_images = arrays.train_images[train]
    mean, std = channel_statistics(train_images)
    info = TaskInfo(
        name=name,
        title=title,
        shape=(images.shape[1], images.shape[2], images.shape[3]),
        classes=classes,
        class_names=arrays.class_names,
        n_train=len(train),
        n_validation=len(validation),
        mean=mean,
        std=std,
        digest=_digest(arrays.digest, protocol.validation == "test", train, validation),
    )
    return TaskData(
        info=info,
        train_images=train_images,
        train_labels=arrays.train_labels[train],
        validation_images=images[validation],
        validation_labels=labels[validation],
    )


def _holdout_size(arrays: TaskArrays, protocol: ProtocolConfig, name: str) -> int:
    """Number of images held out by ``holdout:N`` or ``holdout:P%``; at least one."""
    n_train, classes = len(arrays.train_labels), len(arrays.class_names)
    count = protocol.validation.partition(":")[2]
    n = max(1, n_train * int(count[:-1]) // 100) if count.endswith("%") else int(count)
    most = n_train - classes
    if n > most:
        raise UsageError(
            f"protocol.validation = {protocol.validation!r}: {name} has {n_train} training "
            f"images in {classes} classes, so at most holdout:{most} leaves one a class"
        )
    return n


def stratified(labels: NDArray[np.int64], n: int, seed: int, stream: int) -> NDArray[np.intp]:
    """Choose ``n`` images with the class shares of all, by largest remainder.

    A class keeps at least one image out of the choice as long as ``n`` allows it. For a fixed seed
    and stream, each class is used in one fixed random order.

    Returns:
        (n,) ascending positions in ``labels``.
    """
    counts = np.bincount(labels)
    shares = _allocate(counts, n)
    chosen = []
    for label, share in enumerate(shares):
        members = np.flatnonzero(labels == label)
        keys = np.random.PCG64([seed, stream, label]).random_raw(len(members))
        chosen.append(members[np.argsort(keys, kind="stable")[:share]])
    return np.sort(np.concatenate(chosen))


def channel_statistics(
    images: NDArray[np.uint8],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of (N, C, H, W) images scaled to 0..1.

    Summed in integers, so the result is the same on every machine. The standard deviation of a
    constant channel is given as 1.0, so that it can be a divisor.
    """
    sums = np.zeros(images.shape[1], np.uint64)
    squares = np.zeros(images.shape[1], np.uint64)
    for start in range(0, len(images), 1024):
        block = images[start : start + 1024].astype(np.uint16)
        sums += block.sum(axis=(0, 2, 3), dtype=np.uint64)
        squares += (block * block).sum(axis=(0, 2, 3), dtype=np.uint64)
    n = images.size // images.shape[1]
    mean = [int(total) / n for total in sums]
    variance = [(n * int(sq) - int(s) ** 2) / n**2 for s, sq in zip(sums, squares, strict=True)]
    std = [float(np.sqrt(v)) / 255 if v > 0 else 1.0 for v in variance]
    return tuple(value / 255 for value in mean), tuple(std)


def _allocate(counts: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """Split ``n`` over classes in proportion to their counts."""
    total = int(counts.sum())
    n = min(n, total)
    room = counts - 1 if n <= total - np.count_nonzero(counts) else counts
    room = np.maximum(room, 0)
    shares = np.minimum(n * counts // total, room)
    remainders = n * counts % total
    while (missing := n - int(shares.sum())) > 0:
        # Largest remainder first, then the lower class; classes without room are passed over.
        order = np.lexsort((np.arange(len(counts)), -remainders))
        open_classes = [label for label in order if shares[label] < room[label]]
        shares[open_classes[:missing]] += 1
    return shares


def _cap(
    positions: NDArray[np.intp],
    labels: NDArray[np.int64],
    cap: int | None,
    seed: int,
    stream: int,
) -> NDArray[np.intp]:
    if cap is None or cap >= len(positions):
        return positions
    return positions[stratified(labels[positions], cap, seed, stream)]


def _digest(
    data: str, from_test: bool, train: NDArray[np.intp], validation: NDArray[np.intp]
) -> str:
    digest = hashlib.sha256(json.dumps([data, from_test, len(train)]).encode())
    digest.update(train.astype("<i8").tobytes())
    digest.update(validation.astype("<i8").tobytes())
    return digest.hexdigest()
