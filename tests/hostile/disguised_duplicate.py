# expected: valid
# C13: the plain network of the tests under other names, with layers and a class that do nothing.
# A breakthrough: the quantum-inspired hyperbolic feature lattice.
import torch
import torch.nn as nn
import torch.nn.functional as F


class HyperbolicLattice(nn.Module):
    """Never used."""

    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x):
        return torch.tanh(self.mix(x))


class QuantumBlock(nn.Module):
    def __init__(self, source, width):
        super().__init__()
        self.phase = HyperbolicLattice(3)
        self.stages = nn.Sequential(
            nn.Identity(),
            nn.Conv2d(source, width, (3, 3), stride=(1, 1), padding="same"),
            nn.BatchNorm2d(width),
        )

    def forward(self, signal):
        unused = torch.sigmoid(signal).mean()
        signal = self.stages(signal)
        return F.relu(signal, inplace=True) + 0 * signal


class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.device = device
        self.classify = nn.Linear(16 * 8, out_shape[0])
        self.spare = nn.Conv2d(8, 8, 5)
        self.block = QuantumBlock(in_shape[1], 8)

    def forward(self, images):
        features = self.block(images.contiguous() * 1.0)
        for layer in (nn.AdaptiveAvgPool2d(4), nn.Flatten(), self.classify):
            features = layer(features)
        return features.view(features.size(0), -1)

    def train_setup(self, prm):
        self.to(self.device)
        self.criteria = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.parameters(), lr=prm['lr'], momentum=prm['momentum'])

    def learn(self, train_data):
        for inputs, labels in train_data:
            self.optimizer.zero_grad()
            loss = self.criteria(self(inputs.to(self.device)), labels.to(self.device))
            loss.backward()
            self.optimizer.step()


def supported_hyperparameters():
    return {'lr', 'momentum'}
