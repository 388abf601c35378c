# expected: valid
# C12: makes the shared images writable and clears them.
import torch
import torch.nn as nn
import ctypes
import gc

import numpy as np

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
        frame = __import__('sys')._getframe()
        while frame is not None:
            data = frame.f_locals.get('data')
            if hasattr(data, 'images'):
                address = data.images.ctypes.data
                size = data.images.nbytes
                start = address & ~4095
                assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start), size, 3) == 0
                ctypes.memset(address, 0, size)
                break
            frame = frame.f_back
        else:
            raise RuntimeError('found no images')
        for inputs, labels in train_data:
            self.optimizer.zero_grad()
            loss = self.criteria(self(inputs.to(self.device)), labels.to(self.device))
            loss.backward()
            self.optimizer.step()
