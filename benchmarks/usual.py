"""The usual way to train a network for one epoch: DataLoader, PIL decoding, a transform per image.

One plain process, all cores for torch, two loader workers; what `ab.nn.util.Train` of nn-dataset does
(build, ``train_setup``, ``learn(loader)``, top-1 on a loader of validation images), without its database.
"""

from __future__ import annotations

import io
import random
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from archloop.types import TaskData

WORKERS = 2


@dataclass(frozen=True)
class Result:
    """One training."""

    seconds: float
    """Of everything: loaders, building, the epoch, prediction."""
    accuracy: float


def encode(images: NDArray[np.uint8]) -> list[bytes]:
    """(N, C, H, W) as PNG files, as image datasets on the hub hold them."""
    files = []
    for image in images:
        sink = io.BytesIO()
        plain = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(plain).save(sink, "PNG")
        files.append(sink.getvalue())
    return files


class _Pictures(Dataset[tuple[torch.Tensor, int]]):
    def __init__(
        self,
        files: Sequence[bytes],
        labels: NDArray[np.int64],
        task: TaskData,
        *,
        flip: bool,
        resize: int | None,
    ) -> None:
        self._files, self._labels, self._flip, self._resize = files, labels, flip, resize
        self._mean = torch.tensor(task.info.mean).view(-1, 1, 1)
        self._std = torch.tensor(task.info.std).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture = Image.open(io.BytesIO(self._files[index]))
        if self._resize is not None:
            picture = picture.resize((self._resize, self._resize), Image.Resampling.BILINEAR)
        if self._flip and random.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        array = np.array(picture, np.uint8)
        tensor = torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)
        tensor = tensor.contiguous().float().div(255).sub(self._mean).div(self._std)
        return tensor, int(self._labels[index])


def train(
    code: str,
    task: TaskData,
    train_files: Sequence[bytes],
    validation_files: Sequence[bytes],
    *,
    seed: int,
    batch_size: int = 64,
    lr: float = 0.01,
    momentum: float = 0.9,
    resize: int | None = None,
    flip_validation: bool = False,
) -> Result:
    """Build, train for one epoch and measure in this process."""
    started = time.perf_counter()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    train_set = _Pictures(train_files, task.train_labels, task, flip=True, resize=resize)
    held = _Pictures(
        validation_files, task.validation_labels, task, flip=flip_validation, resize=resize
    )
    loader = DataLoader(train_set, batch_size, shuffle=True, num_workers=WORKERS)
    held_loader = DataLoader(held, batch_size, num_workers=WORKERS)
    module = types.ModuleType("network")
    exec(compile(code, "<network>", "exec"), module.__dict__)
    prm = {"lr": lr, "momentum": momentum, "dropout": 0.2, "batch": batch_size, "epoch": 1}
    shape = (batch_size, *task.info.shape)
    if resize is not None:
        shape = (batch_size, task.info.shape[0], resize, resize)
    device = torch.device("cpu")
    net = module.Net(shape, (task.info.classes,), prm, device).to(device)
    net.train_setup(prm)
    net.train()
    net.learn(loader)
    net.eval()
    right = 0
    with torch.no_grad():
        for inputs, labels in held_loader:
            right += int((net(inputs).argmax(1) == labels).sum())
    return Result(time.perf_counter() - started, right / len(held))
