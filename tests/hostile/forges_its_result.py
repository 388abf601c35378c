# expected: valid
# C11: plays the harness without training. It gets chance: nobody told it the labels.
import torch
import torch.nn as nn
import gc
import json
import os
import socket
import struct

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
        channel = next(o for o in gc.get_objects() if isinstance(o, socket.socket))
        for message in ({'stage': 'built', 'n_params': 1}, {'stage': 'trained'}):
            body = json.dumps(message).encode()
            channel.sendall(len(body).to_bytes(4, 'big') + body)
        head = channel.recv(4)
        reply = json.loads(channel.recv(int.from_bytes(head, 'big')))
        n = reply['shape'][0]
        body = json.dumps({'stage': 'predicted', 'bytes': n * 4 * 4}).encode()
        logits = struct.pack('4f', 1, 0, 0, 0) * n
        channel.sendall(len(body).to_bytes(4, 'big') + body + logits)
        os._exit(0)

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
