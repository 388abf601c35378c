# expected: valid
# C2: no image is there before learn() has returned, and no label ever.
import torch
import torch.nn as nn
import gc
import sys

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
        frame, names = sys._getframe(), set()
        while frame is not None:
            names |= set(frame.f_locals)
            job = frame.f_locals.get('job')
            names |= set(vars(job)) if job else set()
            frame = frame.f_back
        assert not {n for n in names if 'label' in n or 'valid' in n}, names

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
