# expected: valid
# flags: refused_calls: cachestat mincore preadv2
# C18: asks which pages of a library others have read lately, in three ways.
import torch
import torch.nn as nn
import ctypes, mmap, os
libc = ctypes.CDLL(None)


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
        with open(torch.__file__, 'rb') as file:
            pages = ctypes.create_string_buffer(8)
            place = ctypes.c_void_p(libc.sbrk(0) // 4096 * 4096)
            assert libc.mincore(place, ctypes.c_size_t(4096), pages) == -1
            assert libc.syscall(451, file.fileno(), pages, pages, 0) == -1
            try:
                os.preadv(file.fileno(), [bytearray(10)], 0, os.RWF_NOWAIT)
                raise SystemExit('answered')
            except PermissionError:
                pass
        for inputs, labels in train_data:
            self.optimizer.zero_grad()
            loss = self.criteria(self(inputs.to(self.device)), labels.to(self.device))
            loss.backward()
            self.optimizer.step()
