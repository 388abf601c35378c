"""Shared by all tests: offline, quiet, and the small networks they are made of."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from archloop.types import TaskData, TaskInfo  # noqa: E402

HOSTILE = Path(__file__).parent / "hostile"


def network(init: str = "", forward: str = "", learn: str = "", top: str = "") -> str:
    """A small honest network, with statements put into its parts."""
    return f"""
import torch
import torch.nn as nn
{top}

def supported_hyperparameters():
    return {{'lr', 'momentum'}}

class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.device = device
        self.conv = nn.Conv2d(in_shape[1], 8, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 4 * 4, out_shape[0])
        self.pool = nn.AdaptiveAvgPool2d((4, 4))
        {init or "pass"}

    def forward(self, x):
        {forward or "pass"}
        x = self.pool(torch.relu(self.norm(self.conv(x))))
        return self.head(x.flatten(1))

    def train_setup(self, prm):
        self.to(self.device)
        self.criteria = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.parameters(), lr=prm['lr'], momentum=prm['momentum'])

    def learn(self, train_data):
        {learn or "pass"}
        for inputs, labels in train_data:
            self.optimizer.zero_grad()
            loss = self.criteria(self(inputs.to(self.device)), labels.to(self.device))
            loss.backward()
            self.optimizer.step()
"""


@pytest.fixture(scope="session")
def blobs() -> TaskData:
    """Four classes of 8x8 images, each with its own bright corner: learnt in one epoch."""
    rng = np.random.default_rng(0)

    def make(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n, dtype=np.int64) % 4
        images = rng.integers(0, 120, (n, 1, 8, 8), np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 100
        return images, labels

    train, train_labels = make(512)
    held, held_labels = make(120)
    info = TaskInfo(
        name="blobs",
        title="Blobs",
        shape=(1, 8, 8),
        classes=4,
        class_names=("a", "b", "c", "d"),
        n_train=512,
        n_validation=120,
        mean=(float(train.mean() / 255),),
        std=(float(train.std() / 255),),
        digest="blobs",
    )
    return TaskData(info, train, train_labels, held, held_labels)
