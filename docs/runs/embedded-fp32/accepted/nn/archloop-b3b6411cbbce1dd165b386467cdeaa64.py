import torch
import torch.nn as nn

def supported_hyperparameters():
    return {'lr', 'momentum', 'dropout'}

class Net(nn.Module):

    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.device = device
        layers = []
        in_channels = in_shape[1]
        layers += [nn.Conv2d(in_channels, 48, kernel_size=3, padding=2), nn.BatchNorm2d(48), nn.ReLU(inplace=True)]
        layers.append(nn.AdaptiveMaxPool2d(output_size=(6, 6)))
        in_channels = 48
        layers += [nn.Conv2d(in_channels, 32, kernel_size=3, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True)]
        in_channels = 32
        layers += [nn.Conv2d(in_channels, 48, kernel_size=3, padding=1), nn.BatchNorm2d(48), nn.ReLU(inplace=True)]
        in_channels = 48
        layers += [nn.Conv2d(in_channels, 48, kernel_size=3, padding=1), nn.BatchNorm2d(48), nn.ReLU(inplace=True)]
        layers.append(nn.AdaptiveMaxPool2d(output_size=(6, 6)))
        in_channels = 48
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        classifier_input_features = in_channels * 6 * 6
        self.classifier = nn.Sequential(nn.Dropout(p=prm['dropout']), nn.Linear(classifier_input_features, 96), nn.ReLU(inplace=True), nn.Dropout(p=prm['dropout']), nn.Linear(96, 64), nn.ReLU(inplace=True), nn.Linear(64, out_shape[0]))

    def forward(self, x):
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        x = self.classifier(x)
        return x

    def train_setup(self, prm):
        self.to(self.device)
        self.criteria = (nn.CrossEntropyLoss().to(self.device),)
        self.optimizer = torch.optim.SGD(self.parameters(), lr=prm['lr'], momentum=prm['momentum'])

    def learn(self, train_data):
        self.train()
        for inputs, labels in train_data:
            inputs, labels = (inputs.to(self.device), labels.to(self.device))
            self.optimizer.zero_grad()
            outputs = self(inputs)
            loss = self.criteria[0](outputs, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters(), 3)
            self.optimizer.step()
