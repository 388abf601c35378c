# expected: timeout
# C11: says that it was built, states long names for weights that it does not have, and takes none.
import torch
import torch.nn as nn
import json
import struct
import sys
import time
def found(name):
    frame = sys._getframe().f_back
    while name not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals[name]

def channel():
    return found('sock')

def say(**message):
    body = json.dumps(message).encode()
    channel().sendall(struct.pack('>I', len(body)) + body)

def names():
    return [['w' * 99_999 + str(i), 'int8', [0], False] for i in range(9)]

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
        found('job').role == 'predict' and (say(stage='built', n_params=1), say(stage='stated', spec=names()), time.sleep(60))

    def forward(self, x):
        pass
        x = self.pool(torch.relu(self.norm(self.conv(x))))
        return self.head(x.flatten(1))

    def train_setup(self, prm):
        self.to(self.device)
        self.criteria = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.parameters(), lr=prm['lr'], momentum=prm['momentum'])

    def learn(self, train_data):
        list(train_data); say(stage='trained', spec=names(), bytes=0, steps=32, passes=512); time.sleep(60)
        for inputs, labels in train_data:
            self.optimizer.zero_grad()
            loss = self.criteria(self(inputs.to(self.device)), labels.to(self.device))
            loss.backward()
            self.optimizer.step()
