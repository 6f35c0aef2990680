"""Network in network: convolutions followed by 1×1 convolutions, and global average pooling instead of a hidden layer.

Source: Lin, Chen and Yan 2013, "Network In Network", section 3; sizes are those of the authors' CIFAR-10 model:
5×5@192-160-96, max pooling, 5×5@192-192-192, average pooling, 3×3@192-192-K, dropout after each pooling.
Deviations: the last 1×1 convolution comes after the average pooling and has no ReLU. Without the ReLU the two commute,
so this is the same function at a fraction of the work, and the network has a classifier with an embedding before it.
BatchNorm, which the paper predates, is on: `batchnorm=false` gives the paper's layers, which learn more slowly. The 3×3
poolings are padded, so that they halve every size.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from compress.config import knob
from compress.errors import UsageError

# 966,986 is the count of the authors' CIFAR-10 model
PARAMETERS = {
    ("nin:batchnorm=false", 10, (3, 32, 32)): 966_986,
    ("nin", 10, (3, 32, 32)): 968_394,
}

# a sum over the layers
MACS = {
    ("nin", 10, (3, 32, 32)): 222_365_568,
}

# (kernel, channels of the layers) of the three stages; the classifier is the third layer of the last
_STAGES = ((5, (192, 160, 96)), (5, (192, 192, 192)), (3, (192, 192)))
_SMALLEST = 4


@dataclass(frozen=True, kw_only=True)
class Config:
    width: float = knob(1.0, "width multiplier of every layer but the last", low=0.05, high=8)
    batchnorm: bool = knob(True, "BatchNorm after each convolution (the paper has none)")
    dropout: float = knob(0.5, "dropout after each pooling", low=0, high=0.9)


def _stage(channels_in: int, kernel: int, widths: list[int], batchnorm: bool) -> nn.Sequential:
    """The paper's mlpconv: a convolution, then 1×1 convolutions."""
    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        size = kernel if i == 0 else 1
        conv = nn.Conv2d(channels_in, width, size, padding=size // 2, bias=not batchnorm)
        nn.init.kaiming_normal_(conv.weight)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()] if batchnorm else [conv, nn.ReLU()]
        channels_in = width
    return nn.Sequential(*layers)


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    channels, height, width = input_shape
    if min(height, width) < _SMALLEST:
        raise UsageError(
            f"nin halves images twice and needs {_SMALLEST}×{_SMALLEST} pixels, got {height}×{width}",
            code="E-NET-IMAGES",
        )
    stages = []
    for kernel, layers in _STAGES:
        widths = [max(1, round(n * config.width)) for n in layers]
        stages.append(_stage(channels, kernel, widths, config.batchnorm))
        channels = widths[-1]
    return nn.Sequential(
        OrderedDict(
            stage1=stages[0],
            pool1=nn.MaxPool2d(3, 2, padding=1),
            dropout1=nn.Dropout(config.dropout),
            stage2=stages[1],
            pool2=nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
            dropout2=nn.Dropout(config.dropout),
            stage3=stages[2],
            pool3=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(channels, num_classes),
        )
    )
