"""Three plain networks of about 1 k, 50 k and 300 k parameters, under the candidate contract."""

from __future__ import annotations

_HEAD = """
import torch
import torch.nn as nn


def supported_hyperparameters():
    return {'lr', 'momentum'}


class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.device = device
        channels = in_shape[1]
        layers = []
        for width, stride in WIDTHS:
            layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(channels, out_shape[0])

    def forward(self, x):
        return self.classifier(self.features(x))

    def train_setup(self, prm):
        self.to(self.device)
        self.criteria = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.parameters(), lr=prm['lr'], momentum=prm['momentum'])

    def learn(self, train_data):
        for inputs, labels in train_data:
            inputs, labels = inputs.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            loss = self.criteria(self(inputs), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 3)
            self.optimizer.step()
"""

WIDTHS = {
    "1 k": ((8, 2), (8, 2)),
    "50 k": ((16, 1), (32, 2), (32, 1), (64, 2), (64, 2)),
    "300 k": ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1)),
}
"""(channels, stride) of each 3x3 convolution."""


def source(size: str) -> str:
    """The source of the network of a size."""
    return f"WIDTHS = {WIDTHS[size]!r}\n{_HEAD}"
