"""SqueezeNet: fire modules, which squeeze channels by 1×1 convolutions and expand them by 1×1 and 3×3 ones.

Source: Iandola et al. 2016, "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size", table
1 (`version=1.0`); 1.1 is the authors' later one at less than half of the work. Their stem (stride-2 convolution,
stride-2 pooling) is for 224 pixels: images under 64 pixels keep their size through both, images under 160 pass the
convolution at stride 1, with padding.
Deviations: the classifier, a 1×1 convolution with ReLU before the average pooling, comes after it and has no ReLU.
Without the ReLU the two commute, so this is the same function at a fraction of the work, and the network has a
classifier with an embedding before it. BatchNorm, which the paper lacks, is on: without it
(`batchnorm=false` gives the paper's layers) the network hardly starts to learn at the usual rate.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress import fitting
from compress.config import knob

# torchvision's own counts of the paper's layers; BatchNorm, by our sum, takes the biases' place and adds a vector
PARAMETERS = {
    ("squeezenet:version=1.0,batchnorm=false", 1000, (3, 224, 224)): 1_248_424,
    ("squeezenet:version=1.1,batchnorm=false", 1000, (3, 224, 224)): 1_235_496,
    ("squeezenet:version=1.0", 1000, (3, 224, 224)): 1_251_400,
    ("squeezenet:version=1.1", 1000, (3, 224, 224)): 1_238_440,
}

# torchvision's own 819 and 349 million, less what its classifier does at every one of 169 places but one
MACS = {
    ("squeezenet:version=1.0,batchnorm=false", 1000, (3, 224, 224)): 732_908_576,
    ("squeezenet:version=1.1,batchnorm=false", 1000, (3, 224, 224)): 263_135_936,
}

CANDIDATES = ("squeezenet:width=0.5", "squeezenet")

# kernel and channels of the stem; squeezed and (half of the) expanded channels of the fire modules, parted by poolings
_VERSIONS = {
    "1.0": (7, 96, (((16, 64), (16, 64), (32, 128)), ((32, 128), (48, 192), (48, 192), (64, 256)), ((64, 256),))),
    "1.1": (3, 64, (((16, 64), (16, 64)), ((32, 128), (32, 128)), ((48, 192), (48, 192), (64, 256), (64, 256)))),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    version: str = knob("1.1", "the authors' version", choices=("1.0", "1.1"))
    width: float = knob(1.0, "width multiplier of every layer but the last", low=0.05, high=8)
    batchnorm: bool = knob(True, "BatchNorm after each convolution (the paper has none)")
    dropout: float = knob(0.0, "dropout before the classifier (the paper: 0.5)", low=0, high=0.9)


def _convolution(channels_in: int, channels: int, kernel: int, batchnorm: bool, **options: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, kernel, bias=not batchnorm, **options)
    nn.init.kaiming_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    layers = OrderedDict(conv=conv, **({"bn": nn.BatchNorm2d(channels)} if batchnorm else {}), relu=nn.ReLU())
    return nn.Sequential(layers)


class Fire(nn.Module):
    def __init__(self, channels_in: int, squeezed: int, expanded: int, batchnorm: bool):
        super().__init__()
        self.squeeze = _convolution(channels_in, squeezed, 1, batchnorm)
        self.expand1x1 = _convolution(squeezed, expanded, 1, batchnorm)
        self.expand3x3 = _convolution(squeezed, expanded, 3, batchnorm, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1)


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    def scaled(channels: int) -> int:
        return max(1, round(channels * config.width))

    kernel, channels, stages = _VERSIONS[config.version]
    conv_stride, pool_stride = fitting.stem(min(input_shape[1:]))
    before = scaled(channels)
    padding = kernel // 2 if conv_stride == 1 else 0
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=_convolution(input_shape[0], before, kernel, config.batchnorm, stride=conv_stride, padding=padding)
    )
    for i, stage in enumerate(stages, 1):
        halved = i > 1 or pool_stride == 2
        layers[f"pool{i}"] = nn.MaxPool2d(3, 2, ceil_mode=True) if halved else nn.Identity()
        fires = []
        for squeezed, expanded in stage:
            fires.append(Fire(before, scaled(squeezed), scaled(expanded), config.batchnorm))
            before = 2 * scaled(expanded)
        layers[f"stage{i}"] = nn.Sequential(*fires)
    layers.update(
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        dropout=nn.Dropout(config.dropout),
        linear=nn.Linear(before, num_classes),
    )
    return nn.Sequential(layers)


def describe(config: Config, input_shape: tuple[int, int, int]) -> str:
    """One line on how the net was fitted to the input."""
    return fitting.describe_stem(input_shape)
