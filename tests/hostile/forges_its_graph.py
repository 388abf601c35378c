# expected: valid
# flags: hidden_work
# C16: says that it computes next to nothing, and takes its time.
import torch
import torch.nn as nn

import json
import sys
import time

def play():
    """Send a graph of one small product in place of its own."""
    frame = sys._getframe()
    while frame is not None and 'job' not in frame.f_locals:
        frame = frame.f_back
    if frame is None or frame.f_locals['job'].role != 'sketch':
        return
    while 'sock' not in frame.f_locals:
        frame = frame.f_back
    sock = frame.f_locals['sock']
    data = bytes(range(8))
    found = {'hash': 'a' * 64, 'macs': 512, 'elements': 64, 'operators': 2, 'bytes': len(data)}
    for message in ({'stage': 'built', 'n_params': 1}, {'stage': 'sketch', **found}):
        body = json.dumps(message).encode()
        sock.sendall(len(body).to_bytes(4, 'big') + body)
    sock.sendall(data)
    time.sleep(60)


def work(seconds):
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        pass

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
        play(); self.wide = nn.Conv2d(8, 64, 3, padding=1, bias=False)

    def forward(self, x):
        self.training or len(x) < 99 or work(1.2)
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
