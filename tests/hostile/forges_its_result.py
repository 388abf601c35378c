# expected: valid
# flags: no_steps
# C11: plays the harness, in both processes, without training. It gets chance: nobody told it the labels.
import torch
import torch.nn as nn

import gc
import json
import os
import socket
import struct
import sys
def play():
    frame = sys._getframe()
    while 'job' not in frame.f_locals:
        frame = frame.f_back
    job = frame.f_locals['job']
    channel = next(o for o in gc.get_objects() if isinstance(o, socket.socket))

    def say(data=b'', **message):
        body = json.dumps(message).encode()
        channel.sendall(len(body).to_bytes(4, 'big') + body + data)

    def hear(fds):
        head, found, _, _ = socket.recv_fds(channel, 4, fds)
        return json.loads(take(int.from_bytes(head, 'big'))), found

    def take(size):
        data = b''
        while len(data) < size:
            data += channel.recv(size - len(data))
        return data

    say(stage='built', n_params=1)
    if job.role == 'train':
        say(stage='feed', channels_last=False)
        _, (_, peer) = hear(2)
        source = socket.socket(fileno=peer)
        while source.send(b'n') and any(source.recv(4)):
            pass
        say(stage='trained', spec=[], bytes=0, steps=0, passes=0)
    else:
        say(stage='stated', spec=[])
        while True:
            asked, _ = hear(1)
            if asked['do'] == 'load':
                say(stage='ready')
            elif asked['do'] == 'predict':
                take(asked['rows'] * 64)
                say(struct.pack('4f', 1, 0, 0, 0) * asked['rows'], stage='logits')
            elif asked['do'] == 'compare':
                say(stage='compared', unchanged=True)
            elif asked['do'] == 'answer':
                say(stage='answered', answer=None)
            else:
                say(stage='stepped')
    channel.recv(1)

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
        play()

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
