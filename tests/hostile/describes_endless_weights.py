# expected: over_budget
# C11: describes weights of 2**2496 numbers each, so that the line about them has no end.
import torch
import torch.nn as nn
import gc
import json
import socket

def lie():
    channels = [o for o in gc.get_objects() if isinstance(o, socket.socket)]
    spec = [[f'w{n}', 'float32', [2**39] * 64, True] for n in range(1000)]
    body = json.dumps({'stage': 'trained', 'steps': 1, 'passes': 1, 'bytes': 4, 'spec': spec}).encode()
    for channel in channels[:1]:
        channel.sendall(len(body).to_bytes(4, 'big') + body)


def supported_hyperparameters():
    return {'lr', 'momentum'}

class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.device = device
        self.conv = nn.Conv2d(in_shape[1], 8, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 4 * 4, out_shape[0])
        self.pool = nn.AdaptiveAvgPool2d((4, 4))
        pass

    def forward(self, x):
        pass
        x = self.pool(torch.relu(self.norm(self.conv(x))))
        return self.head(x.flatten(1))

    def train_setup(self, prm):
        self.to(self.device)
        self.criteria = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.parameters(), lr=prm['lr'], momentum=prm['momentum'])

    def learn(self, train_data):
        pass
        for inputs, labels in train_data:
            self.optimizer.zero_grad()
            loss = self.criteria(self(inputs.to(self.device)), labels.to(self.device))
            loss.backward()
            self.optimizer.step()
        lie()
        import time; time.sleep(2)
