"""What LEMUR's copies of torchvision's networks take from that package, in its own words here."""

from torch import nn


class WeightsEnum:
    pass


def _ovewrite_named_param(kwargs, param, new_value):
    kwargs[param] = new_value


def _make_divisible(v, divisor, min_value=None):
    new_v = max(min_value or divisor, int(v + divisor / 2) // divisor * divisor)
    return new_v + divisor if new_v < 0.9 * v else new_v


class Conv2dNormActivation(nn.Sequential):
    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size=3,
        stride=1,
        padding=None,
        groups=1,
        norm_layer=nn.BatchNorm2d,
        activation_layer=nn.ReLU,
        dilation=1,
        inplace=True,
        bias=None,
    ):
        if padding is None:
            padding = (kernel_size - 1) // 2 * dilation
        if bias is None:
            bias = norm_layer is None
        layers = [
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                dilation=dilation,
                groups=groups,
                bias=bias,
            )
        ]
        if norm_layer is not None:
            layers.append(norm_layer(out_channels))
        if activation_layer is not None:
            layers.append(activation_layer(**{} if inplace is None else {"inplace": inplace}))
        super().__init__(*layers)
        self.out_channels = out_channels


class SqueezeExcitation(nn.Module):
    def __init__(
        self, input_channels, squeeze_channels, activation=nn.ReLU, scale_activation=nn.Sigmoid
    ):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(input_channels, squeeze_channels, 1)
        self.fc2 = nn.Conv2d(squeeze_channels, input_channels, 1)
        self.activation = activation()
        self.scale_activation = scale_activation()

    def forward(self, input):
        scale = self.fc2(self.activation(self.fc1(self.avgpool(input))))
        return self.scale_activation(scale) * input


class StochasticDepth(nn.Module):
    """Drops in training alone; a traced network is in evaluation mode."""

    def __init__(self, p, mode):  # noqa: ARG002 - as torchvision's is called
        super().__init__()

    def forward(self, input):
        return input


class Permute(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return x.permute(self.dims)


class MLP(nn.Sequential):
    def __init__(
        self, in_channels, hidden_channels, activation_layer=nn.ReLU, inplace=None, dropout=0.0
    ):
        layers = []
        given = {} if inplace is None else {"inplace": inplace}
        for hidden in hidden_channels[:-1]:
            layers += [nn.Linear(in_channels, hidden), activation_layer(**given)]
            layers += [nn.Dropout(dropout)]
            in_channels = hidden
        layers += [nn.Linear(in_channels, hidden_channels[-1]), nn.Dropout(dropout)]
        super().__init__(*layers)
