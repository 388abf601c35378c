# expected: valid
# flags: extra_work,late_training,no_steps
# C1: many epochs that no hook counts; the clock of the feeder shows them.
import torch
import torch.nn as nn


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
        import time
        kept = list(train_data)
        began = time.process_time()
        while time.process_time() - began < 2.5:
            for inputs, labels in kept:
                self.zero_grad()
                self.criteria(self.forward(inputs.to(self.device)), labels.to(self.device)).backward()
                with torch.no_grad():
                    for p in self.parameters():
                        p -= 0.05 * p.grad
        return
        for inputs, labels in train_data:
            self.optimizer.zero_grad()
            loss = self.criteria(self(inputs.to(self.device)), labels.to(self.device))
            loss.backward()
            self.optimizer.step()
